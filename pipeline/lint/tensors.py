"""Lint rules on configured inputs and outputs: names, types, dims, reshapes, labels (core: ValidateIOShape)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.lint.model import (
    CHECKED_BACKENDS,
    CONFIG_NAME,
    Findings,
    Model,
    Place,
    Rule,
    below,
    dims_text,
    enum_name,
    printable,
    read_text,
)


def tensors(model: Model) -> Iterator[tuple[str, Any]]:
    """Every configured tensor with what to call it: ``input 'x'``, ``output 'y'``."""
    for kind in ("input", "output"):
        for item in getattr(model.config, kind):
            yield f"{kind} {printable(item.name)!r}", item


def tensors_given(model: Model) -> Findings:
    """With auto-complete off, a tensor that is not configured does not exist."""
    report = model.error if model.backend in CHECKED_BACKENDS or model.is_ensemble else model.warning
    for kind in ("input", "output"):
        if not getattr(model.config, kind):
            yield report(
                f"{kind}-missing",
                f"the configuration has no {kind}; a server that does not complete it by itself cannot serve the "
                "model.",
                f"list every {kind} with name, data_type and dims",
            )


def tensor_fields(model: Model) -> Findings:
    """A name and a type for every tensor, and each name once."""
    for what, item in tensors(model):
        if not item.name:
            yield model.error("tensor-name-missing", f"an {what.split()[0]} has no name.", "give it one")
        if enum_name(item, "data_type") == "TYPE_INVALID":
            reason = f"{what} has no data_type."
            yield model.error("tensor-data-type-missing", reason, "write its data_type, for example TYPE_FP32")
    for kind in ("input", "output"):
        counted = Counter(item.name for item in getattr(model.config, kind))
        for twice in sorted(name for name, count in counted.items() if count > 1 and name):
            reason = f"{kind} {printable(twice)!r} is configured {counted[twice]} times, which Triton does not notice."
            yield model.error("tensor-name-duplicate", reason, "keep one of them")


def tensor_dims(model: Model) -> Findings:
    """``dims`` are not empty, and each is a size or -1."""
    for what, item in tensors(model):
        if not item.dims:
            yield model.error(
                "dims-missing",
                f"{what} has no dims.",
                "write dims without the batch dimension; for one value per sample, dims: [ 1 ] with "
                "reshape { shape: [ ] }",
            )
        if any(dim < 1 and dim != -1 for dim in item.dims):
            reason = f"{what} has dims {dims_text(item.dims)}; each must be 1 or more, or -1 for any size."
            yield model.error("dims-value", reason, "correct the dims")


def reshapes(model: Model) -> Findings:
    """A reshape keeps the element count, between every two variable dimensions too."""
    for what, item in tensors(model):
        if not item.HasField("reshape"):
            continue
        shape, dims = list(item.reshape.shape), list(item.dims)
        if not shape and model.config.max_batch_size == 0:
            reason = f"{what} is reshaped to nothing, which needs a batch dimension, and max_batch_size is 0."
            yield model.error("reshape-empty", reason, "set max_batch_size, or remove the reshape")
        elif any(dim < 1 and dim != -1 for dim in shape):
            reason = f"{what} is reshaped to {dims_text(shape)}; each size must be 1 or more, or -1."
            yield model.error("reshape-value", reason, "correct reshape.shape")
        elif dims and trunks(dims) != trunks(shape):
            yield model.error(
                "reshape-size",
                f"{what} has dims {dims_text(dims)} and is reshaped to {dims_text(shape)}, which has other elements.",
                "make both hold the same number of elements before, between and after the -1s",
            )


def trunks(dims: Sequence[int]) -> list[int]:
    """Element counts of the runs of fixed sizes between variable dimensions; [1] for no dimensions."""
    counts = [1]
    for dim in dims:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def formats(model: Model) -> Findings:
    """An image format is a statement about three dims."""
    for item in model.config.input:
        chosen = enum_name(item, "format")
        if chosen != "FORMAT_NONE" and len(item.dims) != 3:
            reason = (
                f"input {printable(item.name)!r} has {chosen}, which takes exactly 3 dims; it has "
                f"{dims_text(item.dims)}."
            )
            fix = "remove format, or write the three dims without the batch dimension"
            yield model.error("format-dims", reason, fix)


def tensorrt_only(model: Model) -> Findings:
    """Shape tensors and non-linear formats exist in TensorRT engines only."""
    engine = model.backend == "tensorrt"
    for what, item in tensors(model):
        if item.is_shape_tensor and not engine:
            reason = f"{what} is a shape tensor, which only TensorRT engines have."
            yield model.error("shape-tensor", reason, "remove is_shape_tensor")
        if item.is_non_linear_format_io and (not engine or len(item.dims) != 3):
            reason = f"{what} has is_non_linear_format_io, which is for TensorRT tensors of 3 dims."
            yield model.error("non-linear-format", reason, "remove is_non_linear_format_io")


def onnx_inputs(model: Model) -> Findings:
    """What the onnxruntime backend refuses before it looks at the file (ValidateInputs)."""
    if model.backend != "onnxruntime":
        return
    for item in model.config.input:
        if item.optional and (model.batched or item.allow_ragged_batch):
            reason = (
                f"input {printable(item.name)!r} is optional, which the onnxruntime backend refuses for models that "
                "batch, and for ragged inputs."
            )
            yield model.error("optional-with-batching", reason, "remove optional, or set max_batch_size to 0")


def batch_tensors(model: Model) -> Findings:
    """``batch_input`` and ``batch_output`` of ragged models."""
    inputs = {item.name for item in model.config.input}
    outputs = {item.name for item in model.config.output}
    for item in (*model.config.batch_input, *model.config.batch_output):
        kind = enum_name(item, "kind")
        if len(item.source_input) != 1 or set(item.source_input) - inputs:
            reason = f"{kind} takes exactly one configured input as source_input; it has {sorted(item.source_input)}."
            yield model.error("batch-tensor-source", reason, "name one of the model's inputs")
    for item in model.config.batch_input:
        if enum_name(item, "data_type") not in ("TYPE_INT32", "TYPE_FP32"):
            reason = f"a batch_input is TYPE_INT32 or TYPE_FP32, not {enum_name(item, 'data_type')}."
            yield model.error("batch-tensor-type", reason, "correct its data_type")
    for item in model.config.batch_output:
        if set(item.target_name) - outputs or len(set(item.target_name)) != len(item.target_name):
            reason = f"a batch_output names the targets {sorted(item.target_name)}; each must be one output, once."
            yield model.error("batch-tensor-target", reason, "name configured outputs")


def labels(model: Model) -> Findings:
    """Label files exist, one class per line, as many as the output has scores."""
    for item in model.config.output:
        if not item.label_filename:
            continue
        path = below(model.path, item.label_filename)
        at, text = model.at(path or model.path / CONFIG_NAME), read_text(path) if path is not None else None
        if text is None:
            reason = (
                f"output {printable(item.name)!r} takes its labels from {printable(item.label_filename)!r}, which is "
                "no text file inside the model directory; the model fails to load."
            )
            yield at.error("label-file-missing", reason, "add the file beside config.pbtxt, one label per line")
        else:
            yield from _labels(item, at, text)


def _labels(item: Any, at: Place, text: str) -> Findings:
    # Triton splits at \n only, and a last line without one counts.
    lines = text.removesuffix("\n").split("\n") if text else []
    classes = item.dims[-1] if item.dims else -1
    if classes > 0 and math.prod(item.dims) == classes and len(lines) != classes:
        reason = f"there are {len(lines)} labels, and output {printable(item.name)!r} has {classes} scores."
        yield at.error("label-count", reason, f"write exactly {classes} lines, in the order of the scores")
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if blank:
        reason = f"{len(blank)} of the labels are blank; clients get an empty name for those classes."
        yield Place(f"{at}:{blank[0]}:1").warning("label-blank", reason, "write a label on every line")
    if any(line.endswith("\r") for line in lines):
        reason = "the lines end in CR LF, and Triton makes the CR a part of each label."
        yield at.warning("label-line-ending", reason, "save the file with LF line endings")


TENSOR_RULES: tuple[Rule, ...] = (
    tensors_given, tensor_fields, tensor_dims, reshapes, formats, tensorrt_only, onnx_inputs, batch_tensors, labels,
)  # fmt: skip
