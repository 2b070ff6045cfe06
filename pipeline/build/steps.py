"""The steps of a run: each is taken from the store, or run once, whoever asks for it first."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from pipeline.base.errors import PipelineError
from pipeline.base.step import Made, Outcome, Step, Task
from pipeline.base.store import Store
from pipeline.build.executors import Executor
from pipeline.report.terminal import Stage

_GRACE_S = 10.0


class Shown(Protocol):
    """Shows, logs and times a stage that waits for its turn and is done by another process."""

    def __call__(self, name: str, log_name: str, *, waits: bool) -> AbstractContextManager[Stage]:
        """As ``Run.stage``."""


class Steps:
    """Gets steps done; several threads may ask for them.

    Args:
        store: where finished steps are kept.
        executor: what runs the others.
        directory: for logs.
        shown: see ``Shown``.
        warn: prints a line for a person.
        owners: whose log a step writes to, and who tells its notes, by the step's name.
        made: what has been made so far, by the step's name; added to.
    """

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor,
        directory: Path,
        shown: Shown,
        warn: Callable[[str], None],
        owners: Mapping[str, str],
        made: dict[str, Made],
    ) -> None:
        self.owners, self.made = owners, made
        self._store, self._executor, self._directory = store, executor, directory
        self._shown, self._warn = shown, warn
        self._futures: dict[str, Future[Made]] = {}
        self._lock = threading.Lock()

    def get(self, step: Step, summary: Callable[[Made], str]) -> Made:
        """What a step makes; one that this run has done, or is doing, is not shown again.

        Args:
            step: its upstream steps are done.
            summary: for the end of its line.

        Raises:
            PipelineError: it failed, now or when another asked for it.
        """
        with self._lock:
            known = self._futures.get(step.name)
            future = self._futures.setdefault(step.name, Future())
        if known is not None:
            return known.result()
        try:
            self.made[step.name] = made = self._done(step, summary)
        except BaseException as error:
            future.set_exception(error)
            raise
        future.set_result(made)
        return made

    def _done(self, step: Step, summary: Callable[[Made], str]) -> Made:
        log_path = self._directory / f"{self.owners[step.name]}.log"
        upstream = {role: self.made[other.name] for role, other in step.upstream.items()}
        try:
            with self._shown(step.name, self.owners[step.name], waits=True) as stage:
                made = self._store.run(step, partial(self._run, step, upstream, log_path, stage), upstream)
                stage.cached, stage.result = made.cached, summary(made)
        except PipelineError as failure:
            failure.log = failure.log or str(log_path)
            raise
        if made.rebuilt:
            self._warn(f"    [yellow]{step.name}: the stored result was not used: {made.rebuilt}[/yellow]")
        return made

    def _run(self, step: Step, upstream: Mapping[str, Made], log_path: Path, stage: Stage, folder: Path) -> Outcome:
        task = Task(
            step=step, upstream=upstream, out_dir=folder, partial_dir=self._store.partial(step), log_path=log_path
        )
        begun = False

        def told(message: str, fraction: float | None) -> None:
            nonlocal begun
            if not begun:
                begun = True
                stage.begin()
            stage.progress(message, fraction)

        return self._executor.run(task, told)


def side_by_side(work: Sequence[Callable[[], None]], stop: Callable[[], None]) -> None:
    """Do all of it, each in a thread of its own.

    Args:
        work: what a person can act on it has to keep to itself.
        stop: ends what the threads wait for; called when one of them raises, or at Ctrl-C, before that is raised here.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def done(one: Callable[[], None]) -> None:
        with _Told(ended):
            one()

    threads = [threading.Thread(target=done, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            if error := ended.get():
                raise error
    except BaseException:
        stop()
        for thread in threads:  # a thread that waits for another build's lock is left behind
            thread.join(_GRACE_S)
        raise


class _Told:
    """Hands what was raised, or None, to another thread."""

    def __init__(self, ended: queue.SimpleQueue[BaseException | None]) -> None:
        self._ended = ended

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[True]:
        self._ended.put(error)
        return True
