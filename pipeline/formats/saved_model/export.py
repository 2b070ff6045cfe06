"""Keras model or SavedModel -> SavedModel with the YAML's names, made in a fresh process."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.formats import opening
from pipeline.formats.saved_model import messages, process

SAVED_MODEL = "model.savedmodel"


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``saved_model``."""
    signature = signatures.from_json(task.arguments["signature"])
    return saved_model(opening.opened(task, signature), signature=signature, out_dir=task.out_dir)


def saved_model(source: SourceModel, *, signature: Signature, out_dir: Path) -> Outcome:
    """Write ``out_dir/model.savedmodel``, whose ``serving_default`` takes and gives tensors by the YAML's names.

    A SavedModel that does so already is copied as it is. Equal models give equal bytes in any directory and process.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: the model cannot be saved.
    """
    path = out_dir / SAVED_MODEL
    with process.fresh() as child:
        values, _ = child.call("save", {**messages.about(source.module, signature), "out": str(path.absolute())})
    for item in path.rglob("*"):
        item.chmod(0o755 if item.is_dir() else 0o644)  # for the server's user
    facts = {"signature": "serving_default", "as_given": values["as_given"]}
    return Outcome(file=SAVED_MODEL, notes=tuple(values["notes"]), values=facts)
