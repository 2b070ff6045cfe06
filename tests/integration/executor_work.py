"""Functions of steps for the executor's tests; run in worker processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.base.errors import StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress


def meet(task: Task, progress: Progress) -> Outcome:
    """Wait until as many as ``count`` are here at a time."""
    place = Path(task.arguments["place"])
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + task.arguments["within_s"]
    while len(list(place.iterdir())) < task.arguments["count"] and time.monotonic() < deadline:
        time.sleep(0.01)
    return Outcome(values={"met": len(list(place.iterdir()))})


def alone(task: Task, progress: Progress) -> Outcome:
    """How many others are here while this one is."""
    place = Path(task.arguments["place"])
    mine = place / str(os.getpid())
    mine.touch()
    time.sleep(0.2)
    others = len(list(place.iterdir())) - 1
    mine.unlink()
    return Outcome(values={"others": others})


def tell(task: Task, progress: Progress) -> Outcome:
    """Talk in every way there is."""
    progress("half", 0.5)
    print("from Python")
    sys.stderr.write("an error line\n")
    ctypes.CDLL(None).puts(b"from C")
    ctypes.CDLL(None).fflush(None)
    (task.out_dir / "model.bin").write_text(str(task.arguments["text"]))
    return Outcome(file="model.bin", notes=("a note",), values={"threads": os.environ.get("OMP_NUM_THREADS", "")})


def refuse(task: Task, progress: Progress) -> Outcome:
    """Fail so that a person can act on it."""
    raise StageError("export: no", found="this", where="m.yaml:1:1", hint="that")


def bug(task: Task, progress: Progress) -> Outcome:
    """Fail otherwise."""
    raise ZeroDivisionError("a bug")


def die(task: Task, progress: Progress) -> Outcome:
    """As if killed for its memory."""
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome()


def linger(task: Task, progress: Progress) -> Outcome:
    """Run, with a child, until somebody ends it."""
    child = subprocess.Popen(["sleep", "600"])
    Path(task.arguments["pids"]).write_text(f"{os.getpid()} {child.pid}")
    try:
        child.wait()
    finally:
        child.kill()
    return Outcome()
