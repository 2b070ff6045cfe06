"""SavedModels through TensorFlow's own loader, behind values.Runtime."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature
from pipeline.formats.saved_model.messages import ModelFile
from pipeline.formats.saved_model.process import RemoteRuntime
from pipeline.proof import parity


def judge(task: Task, progress: Progress) -> Outcome:
    """The step; upstream ``graph`` and ``samples``, arguments ``signature`` and those of ``parity.Gates``."""
    runtime = SavedModelRuntime(task.upstream["graph"].path, signatures.from_json(task.arguments["signature"]))
    return parity.judged(runtime, task)


class SavedModelRuntime(RemoteRuntime):
    """The serving signature of a SavedModel, in a session of the TensorFlow process; raises as ``RemoteRuntime``."""

    def __init__(self, path: Path, signature: Signature) -> None:
        super().__init__(ModelFile(kind="saved_model", path=str(path.absolute())), signature)
