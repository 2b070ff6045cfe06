"""A torch module or TorchScript -> TorchScript."""

from __future__ import annotations

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.data import samples
from pipeline.formats import opening
from pipeline.formats.torchscript import export


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``export.export``."""
    signature = signatures.from_json(task.arguments["signature"])
    made = export.export(
        opening.opened(task, signature),
        signature=signature,
        golden=samples.golden(task),
        out_dir=task.out_dir,
        **task.arguments["options"],
    )
    return Outcome(file=made["file"], notes=tuple(made["notes"]), values=made["properties"])
