"""Keras model or SavedModel -> SavedModel with the YAML's names, made in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.values import Signature, SourceModel
from pipeline.formats.saved_model import messages, process

SAVED_MODEL = "model.savedmodel"


def saved_model(source: SourceModel, *, signature: Signature, out_dir: Path) -> dict[str, Any]:
    """Write ``out_dir/model.savedmodel``, whose ``serving_default`` takes and gives tensors by the YAML's names.

    A SavedModel that does so already is copied as it is. Equal models give equal bytes in any directory and process.

    Returns:
        ``{"file": "model.savedmodel", "notes": [...], "properties": {"signature", "as_given"}}``.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: the model cannot be saved.
    """
    path = out_dir / SAVED_MODEL
    with process.fresh() as child:
        values, _ = child.call("save", {**messages.about(source.module, signature), "out": str(path.absolute())})
    for item in path.rglob("*"):
        item.chmod(0o755 if item.is_dir() else 0o644)  # for the server's user
    properties = {"signature": "serving_default", "as_given": values["as_given"]}
    return {"file": SAVED_MODEL, "notes": values["notes"], "properties": properties}
