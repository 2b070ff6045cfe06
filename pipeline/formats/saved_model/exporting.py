"""Keras or a SavedModel -> SavedModel."""

from __future__ import annotations

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.formats import opening
from pipeline.formats.saved_model import export


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``export.saved_model``."""
    signature = signatures.from_json(task.arguments["signature"])
    made = export.saved_model(opening.opened(task, signature), signature=signature, out_dir=task.out_dir)
    return Outcome(file=made["file"], notes=tuple(made["notes"]), values=made["properties"])
