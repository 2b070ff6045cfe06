"""Lint rules on model_warmup: a failing warmup fails the load (core, GenerateWarmupData)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.base.triton_facts import NUMPY_TYPES
from pipeline.lint.model import Findings, Model, Rule, below, dims_text, enum_name, is_regular, printable

_WIDTHS = {kind: np.dtype(dtype).itemsize for kind, dtype in NUMPY_TYPES.items() if kind != "TYPE_STRING"}
_WIDTHS["TYPE_BF16"] = 2  # which numpy lacks


def warmup(model: Model) -> Findings:
    """Every sample covers all inputs with explicit shapes and data that is there."""
    for sample in model.config.model_warmup:
        name = printable(sample.name) or "without a name"
        if sample.batch_size == 0:
            reason = f"warmup sample {name!r} has batch_size 0, so it is skipped."
            yield model.warning("warmup-skipped", reason, "set batch_size to 1 or more")
            continue
        if sample.batch_size > max(1, model.config.max_batch_size):
            reason = (
                f"warmup sample {name!r} has batch_size {sample.batch_size}, over the model's max_batch_size "
                f"{model.config.max_batch_size}; no real batch is that large."
            )
            yield model.warning("warmup-batch-size", reason, "lower its batch_size")
        yield from _inputs(model, name, sample)


def _inputs(model: Model, name: str, sample: Any) -> Findings:
    configured = {item.name: item for item in model.config.input}
    controls = {item.name for item in model.config.sequence_batching.control_input}
    needed = {key for key, item in configured.items() if not item.optional}
    for missing in sorted(needed - set(sample.inputs)):
        reason = f"warmup sample {name!r} gives no data for input {printable(missing)!r}; the model fails to load."
        yield model.error("warmup-input-missing", reason, "add the input to the sample")
    for key, item in sorted(sample.inputs.items()):
        what = f"warmup sample {name!r}, input {printable(key)!r}"
        if key in configured:
            yield from _agrees(model, what, item, configured[key])
        elif key not in controls:
            reason = f"{what}: the model has no such input."
            yield model.error("warmup-input-unknown", reason, "name one of the configured inputs")
        yield from _source(model, what, item)


def _agrees(model: Model, what: str, item: Any, configured: Any) -> Findings:
    given, wanted = list(item.dims), list(configured.dims)
    fits = len(given) == len(wanted) and all(b in (-1, a) for a, b in zip(given, wanted, strict=True))
    if enum_name(item, "data_type") != enum_name(configured, "data_type"):
        reason = f"{what} is {enum_name(item, 'data_type')}; the model's input is {enum_name(configured, 'data_type')}."
        yield model.error("warmup-data-type", reason, "use the input's data_type")
    if not fits and all(dim > 0 for dim in given):
        reason = f"{what} has dims {dims_text(given)}; the model's input has {dims_text(wanted)}."
        fix = "use the input's dims, without the batch dimension, with a size in place of each -1"
        yield model.error("warmup-dims", reason, fix)


def _source(model: Model, what: str, item: Any) -> Findings:
    if not item.dims or any(dim < 1 for dim in item.dims):
        reason = f"{what} has dims {dims_text(item.dims)}; every size must be given."
        yield model.error("warmup-dims", reason, "write a size in place of each -1")
        return
    source = item.WhichOneof("input_data_type")
    if source == "input_data_file":
        yield from _file(model, what, item)
    elif source is None:
        reason = f"{what} has no data."
        yield model.error("warmup-data-missing", reason, "add zero_data: true, random_data: true or input_data_file")


def _file(model: Model, what: str, item: Any) -> Findings:
    name, folder = item.input_data_file, model.path / "warmup"
    path = below(folder, name)
    if path is None or not is_regular(path):
        reason = f"{what} reads {printable(name)!r} in warmup/, which is not there; the model fails to load."
        yield model.at(path or folder).error("warmup-file-missing", reason, "add the file, or use zero_data: true")
        return
    width, found = _WIDTHS.get(enum_name(item, "data_type")), path.stat().st_size
    wanted = found if width is None else width * math.prod(item.dims)  # strings have no fixed size
    if found != wanted:
        at = model.at(path)
        yield (at.error if found < wanted else at.warning)(
            "warmup-file-size",
            f"{what} needs {wanted} bytes for dims {dims_text(item.dims)}; the file has {found}.",
            "write the raw little-endian values of exactly one sample, without the batch dimension",
        )


WARMUP_RULES: tuple[Rule, ...] = (warmup,)
