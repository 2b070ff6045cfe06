"""Steps on this machine, side by side: each in a process of its own, as many as there are cores and memory for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

from pipeline.base import files
from pipeline.base.errors import PipelineError
from pipeline.base.step import Outcome, Step, Task
from pipeline.base.values import Progress
from pipeline.build.executors import worker
from pipeline.machine import capacity

_COPIES = 6  # of a step's upstream files: what is read, what is made of it, and a runtime's own, twice over
_PRELOADED = {"scikit-learn": "sklearn.datasets"}
"""What several steps import within functions, by the distribution that they name."""
_GRACE_S = 3.0
_POLL_S = 0.2  # an interrupted build need not wait longer for its threads
_ENVIRONMENT = {
    # Idle threads wait instead of spinning: they would fight other processes for the cores. On 2 cores beside busy
    # processes a step of ResNet-18's training took 14 s with spinning threads, and 1 s with waiting ones.
    "OMP_WAIT_POLICY": "PASSIVE"
}


class Stopped(BaseException):
    """The build has been interrupted."""


@dataclass(slots=True, kw_only=True)
class _Room:
    """What is free."""

    cores: int
    memory_bytes: int
    running: int = 0


class Local:
    """An executor for this machine; used as a context, it ends what still runs when that is left.

    Args:
        rows: how many steps may be wanted at a time; each gets its share of the cores.
        cores: CPUs to use; None for all that this process may use.
    """

    def __init__(self, rows: int, cores: int | None = None) -> None:
        self._cores = cores or capacity.cores()
        self._share = max(1, self._cores // max(1, rows))
        self._room = _Room(cores=self._cores, memory_bytes=capacity.free_memory_bytes())
        self._changed = threading.Condition()
        self._queue: deque[Task] = deque()
        self._workers: set[ForkServerProcess] = set()
        self._stopped = False
        self._context = multiprocessing.get_context("forkserver")

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End what runs; whoever waits for it, or for room, gets an exception."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            running = list(self._workers)
        for process in running:
            with contextlib.suppress(ValueError, OSError):  # it has just ended
                process.terminate()

    def prepare(self, steps: Collection[Step], log_path: Path) -> None:
        """Start the server that workers are forked from, with the modules of these steps imported.

        Without it, the first step starts the server, and every worker imports what it needs.

        Args:
            steps: those that will have to run.
            log_path: gets what the libraries say while they are imported.
        """
        libraries = (_PRELOADED[tool] for step in steps for tool in step.tools if tool in _PRELOADED)
        modules = dict.fromkeys([worker.__name__, *(step.module for step in steps), *libraries])
        self._context.set_forkserver_preload(list(modules))
        with files.disk_errors(log_path, "starting workers"), _environment(), _output(log_path):
            forkserver.ensure_running()

    def run(self, task: Task, progress: Progress) -> Outcome:
        """As ``Executor.run``."""
        cores, memory = self._needs(task)
        with self._room_for(task, cores, memory):
            ours, theirs = self._context.Pipe(duplex=False)
            threads = None if cores == self._cores else cores
            arguments = (theirs, task, threads, str(Path.cwd()))
            process = self._context.Process(target=worker.main, args=arguments, name=task.step.name)
            with ours, self._started(process, theirs):
                return self._followed(process, ours, task, progress)

    def _needs(self, task: Task) -> tuple[int, int]:
        cores = self._cores if task.step.cores is None else min(self._cores, max(task.step.cores, self._share))
        copied = sum(files.size_bytes(made.directory) for made in task.upstream.values())
        return cores, task.step.memory_bytes + _COPIES * copied

    @contextlib.contextmanager
    def _room_for(self, task: Task, cores: int, memory_bytes: int) -> Iterator[None]:
        """Wait for room, first come first served; there is always room for one."""
        room = self._room

        def fits() -> bool:
            free = room.cores >= cores and room.memory_bytes >= memory_bytes
            return self._stopped or (self._queue[0] is task and (free or not room.running))

        with self._changed:
            self._queue.append(task)
            try:
                self._changed.wait_for(fits)
            finally:
                self._queue.remove(task)
                self._changed.notify_all()
            if self._stopped:
                raise Stopped
            room.cores, room.memory_bytes, room.running = (
                room.cores - cores, room.memory_bytes - memory_bytes, room.running + 1,
            )  # fmt: skip
        try:
            yield
        finally:
            with self._changed:
                room.cores, room.memory_bytes, room.running = (
                    room.cores + cores, room.memory_bytes + memory_bytes, room.running - 1,
                )  # fmt: skip
                self._changed.notify_all()

    @contextlib.contextmanager
    def _started(self, process: ForkServerProcess, theirs: connection.Connection) -> Iterator[None]:
        """Start a worker, and see it ended."""
        with self._changed, _environment():  # multiprocessing's own books are not made for several threads
            if self._stopped:
                raise Stopped
            process.start()
            theirs.close()
            self._workers.add(process)
        try:
            yield
        finally:
            if process.is_alive():
                process.join(_GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            with self._changed:
                self._workers.discard(process)

    def _followed(
        self, process: ForkServerProcess, ours: connection.Connection, task: Task, progress: Progress
    ) -> Outcome:
        """Listen to a worker until it has said what became of its step."""
        while not self._stopped:
            ready = connection.wait([ours, process.sentinel], _POLL_S)
            if not ready:
                continue
            try:
                if ours not in ready:
                    raise EOFError
                kind, value = ours.recv()
            except (EOFError, ConnectionResetError):
                break
            if kind == worker.DONE:
                outcome: Outcome = value
                return outcome
            if kind == worker.FAILED:
                failure: PipelineError = value
                raise failure
            progress(*(("", None) if kind == worker.STARTED else value))
        if self._stopped:
            raise Stopped
        process.join(_GRACE_S)
        raise worker.death(task, process.exitcode)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """For a server that starts in here: libraries read these when they are loaded; what the user has set stays."""
    added = _ENVIRONMENT.keys() - os.environ.keys()
    os.environ.update({name: _ENVIRONMENT[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _output(path: Path) -> Iterator[None]:
    """Let a process that is started in here write to a file; it keeps the descriptors that it is born with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with path.open("ab") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        yield
    finally:
        for descriptor, own in zip((1, 2), kept, strict=True):
            os.dup2(own, descriptor)
            os.close(own)
