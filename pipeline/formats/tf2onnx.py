"""Keras model or SavedModel -> ONNX file with the YAML's names, by tf2onnx in a fresh process."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from pipeline.base import signatures
from pipeline.base.errors import StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Signature, SourceModel
from pipeline.formats import opening
from pipeline.formats.onnx import graph, interface
from pipeline.formats.saved_model import messages, process


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``export``."""
    signature = signatures.from_json(task.arguments["signature"])
    source = opening.opened(task, signature)
    return export(source, signature=signature, out_dir=task.out_dir, **task.arguments["options"])


def export(
    source: SourceModel, *, signature: Signature, exporter: str, opset: int, simplify: bool, max_ir_version: int,
    out_dir: Path,
) -> Outcome:  # fmt: skip
    """Write ``out_dir/model.onnx`` with tf2onnx (up to 2 GB, protobuf's limit).

    Equal models give equal bytes in any directory and process.

    Raises:
        MissingError: TensorFlow or tf2onnx is not installed.
        StageError: tf2onnx cannot convert the model, or its graph is not what the YAML says.
    """
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".raw") as folder:
        raw = Path(folder).absolute() / "raw.onnx"
        with process.fresh() as child:
            job = {**messages.about(source.module, signature), "opset": opset, "out": str(raw)}
            values, _ = child.call("onnx", job)
        model = onnx.load(str(raw))
        if reason := interface.problem(model, signature):
            hint = "correct `inputs` and `outputs`, or serve the model as `format: saved_model`"
            raise StageError("export: tf2onnx's graph is not what the configuration says", found=reason, hint=hint)
        _order(model.graph.input, [spec.name for spec in signature.inputs])
        _order(model.graph.output, [spec.name for spec in signature.outputs])
        interface.name_dimensions(model, signature)
        graph.name_constants(model)
        onnx.save(model, str(raw))
        finished = graph.finish(raw, out_dir, simplify=simplify, max_ir_version=max_ir_version)
    notes = (*values["notes"], *finished.notes)
    return replace(finished, notes=notes, values={"exporter": exporter, **finished.values})


def _order(tensors: Any, names: list[str]) -> None:
    """Put a graph's inputs or outputs into the YAML's order: a SavedModel has none."""
    ordered = sorted(tensors, key=lambda item: names.index(item.name))
    del tensors[:]
    tensors.extend(ordered)
