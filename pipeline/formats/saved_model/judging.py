"""The step that judges a SavedModel."""

from __future__ import annotations

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.formats.saved_model.runtime import SavedModelRuntime
from pipeline.proof import parity


def judge(task: Task, progress: Progress) -> Outcome:
    """Upstream ``graph`` and ``samples``; arguments ``signature`` and those of ``parity.Gates``."""
    runtime = SavedModelRuntime(task.upstream["graph"].path, signatures.from_json(task.arguments["signature"]))
    return parity.judged(runtime, task)
