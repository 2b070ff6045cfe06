"""Keras or a SavedModel -> SavedModel, or ONNX by tf2onnx."""

from __future__ import annotations

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.formats import tf2onnx
from pipeline.formats.saved_model import export
from pipeline.sources import opening


def saved_model(task: Task, progress: Progress) -> Outcome:
    """The step; see ``export.saved_model``."""
    signature = signatures.from_json(task.arguments["signature"])
    made = export.saved_model(opening.opened(task, signature), signature=signature, out_dir=task.out_dir)
    return Outcome(file=made["file"], notes=tuple(made["notes"]), values=made["properties"])


def onnx(task: Task, progress: Progress) -> Outcome:
    """The step; see ``tf2onnx.export``."""
    signature = signatures.from_json(task.arguments["signature"])
    source = opening.opened(task, signature)
    made = tf2onnx.export(source, signature=signature, out_dir=task.out_dir, **task.arguments["options"])
    return Outcome(file=made["file"], notes=tuple(made["notes"]), values=made["properties"])
