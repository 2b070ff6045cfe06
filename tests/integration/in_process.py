"""An executor for tests that put something of their own in the place of a library: workers would not have it."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.step import Outcome, Task, call
from pipeline.base.values import Progress


class InProcess:
    """Runs steps in this process; in the place of ``executors.local.Local``."""

    def __init__(self, rows: int) -> None: ...

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def prepare(self, steps: object, log_path: Path) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to end."""

    def run(self, task: Task, progress: Progress) -> Outcome:
        """As ``Executor.run``."""
        return call(task, progress)
