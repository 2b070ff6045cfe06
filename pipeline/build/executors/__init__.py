"""Where steps run: an executor is handed one step at a time, by as many threads as there are steps to run."""

from __future__ import annotations

from typing import Protocol

from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress


class Executor(Protocol):
    """Runs the functions of steps."""

    def run(self, task: Task, progress: Progress) -> Outcome:
        """Run one step to its end, once there is room for it; called from several threads at a time.

        Args:
            task: the step; its files are in ``task.out_dir`` when this returns.
            progress: told what is being done; first told when the step really starts.

        Raises:
            PipelineError: what the step's function raised, or whoever ran it died.
        """
        ...
