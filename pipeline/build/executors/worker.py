"""The process that runs one step: forked from a server that has imported what steps need, and gone when it is done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from pipeline.base import command, step
from pipeline.base.errors import PipelineError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.report import log

STARTED, TOLD, DONE, FAILED = "started", "told", "done", "failed"
_TAIL_CHARACTERS = 1500
_BUG = 1
"""Exit status of a process that ended in a traceback."""


def main(connection: Connection, task: Task, threads: int | None, folder: str) -> None:
    """Run a step and send what becomes of it.

    Args:
        connection: messages are ``(kind, value)``.
        task: the step.
        threads: for its arithmetic; None for the libraries' own choice, which is all cores.
        folder: the working directory of whoever asks.
    """
    # Ctrl-C reaches every process of a terminal; it is the parent that ends this one, and temporary folders go with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command.die_with_parent()  # the server; the build itself is watched
    threading.Thread(target=_die_with_the_build, daemon=True).start()
    os.chdir(folder)
    if threads is not None:
        _share(threads)
    with connection, contextlib.suppress(KeyboardInterrupt, BrokenPipeError), log.captured(task.log_path, output=True):
        connection.send((STARTED, None))
        connection.send(_done(task, connection))


def _die_with_the_build() -> None:
    """End this process when the one that wants its result is gone.

    Workers hold the pipe by which the server would see that, so that it lives as long as one of them.
    """
    build = multiprocessing.parent_process()
    assert build is not None
    build.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _done(task: Task, connection: Connection) -> tuple[str, Outcome | PipelineError]:
    try:
        return DONE, step.call(task, lambda text, share: connection.send((TOLD, (text, share))))
    except PipelineError as error:
        traceback.print_exc()
        return FAILED, error


def _share(threads: int) -> None:
    """Let this process, and those it starts, compute in so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):  # imported already, with a thread per core
        torch.set_num_threads(threads)


def death(task: Task, status: int | None) -> Exception:
    """What to raise where a worker ended without a word: a bug of this tool, or somebody killed it."""
    try:
        words = task.log_path.read_text(errors="replace")[-_TAIL_CHARACTERS:].strip()
    except OSError:
        words = ""
    if status == _BUG:
        return RuntimeError(f"in the process of {task.step.name}:\n{words}")
    return StageError(
        f"{task.step.name}: its process died",
        found=f"exit status {status}\n{words}",
        hint="status -9 is most often too little memory",
        log=str(task.log_path),
    )
