"""Keras model or SavedModel -> SavedModel or ONNX file with the YAML's names, each made in a fresh process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.base.errors import StageError
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


def onnx(
    source: SourceModel, *, signature: Signature, exporter: str, opset: int, simplify: bool, max_ir_version: int,
    out_dir: Path,
) -> dict[str, Any]:  # fmt: skip
    """Write ``out_dir/model.onnx`` with tf2onnx (up to 2 GB, protobuf's limit).

    Equal models give equal bytes in any directory and process.

    Returns:
        ``{"file": "model.onnx", "notes": [...], "properties": {"exporter", "opset", "ir_version", …}}``.

    Raises:
        MissingError: TensorFlow or tf2onnx is not installed.
        StageError: tf2onnx cannot convert the model, or its graph is not what the YAML says.
    """
    import onnx as library

    from pipeline.formats import interface
    from pipeline.formats.onnx import graph

    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".raw") as folder:
        raw = Path(folder).absolute() / "raw.onnx"
        with process.fresh() as child:
            values, _ = child.call(
                "onnx", {**messages.about(source.module, signature), "opset": opset, "out": str(raw)}
            )
        model = library.load(str(raw))
        if reason := interface.problem(model, signature):
            raise StageError(
                "export: tf2onnx's graph is not what the configuration says",
                found=reason,
                hint="correct `inputs` and `outputs`, or serve the model as `format: saved_model`",
            )
        _order(model.graph.input, [spec.name for spec in signature.inputs])
        _order(model.graph.output, [spec.name for spec in signature.outputs])
        interface.name_dimensions(model, signature)
        graph.name_constants(model)
        library.save(model, str(raw))
        finished = graph.finish(raw, out_dir, simplify=simplify, max_ir_version=max_ir_version)
    properties = {"exporter": exporter, **finished["properties"]}
    return {"file": finished["file"], "notes": [*values["notes"], *finished["notes"]], "properties": properties}


def _order(tensors: Any, names: list[str]) -> None:
    """Put a graph's inputs or outputs into the YAML's order: a SavedModel has none."""
    ordered = sorted(tensors, key=lambda item: names.index(item.name))
    del tensors[:]
    tensors.extend(ordered)
