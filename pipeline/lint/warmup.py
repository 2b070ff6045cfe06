"""Lint rules on model_warmup: a failing warmup fails the load (core, GenerateWarmupData)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.base.triton_facts import NUMPY_TYPES
from pipeline.lint.model import Finding, Model, Rule, below, dims_text, enum_name, error, is_regular, printable, warning

_WIDTHS = {kind: np.dtype(dtype).itemsize for kind, dtype in NUMPY_TYPES.items() if kind != "TYPE_STRING"}
_WIDTHS["TYPE_BF16"] = 2  # which numpy lacks


def warmup(model: Model) -> Iterator[Finding]:
    """Every sample covers all inputs with explicit shapes and data that is there."""
    for sample in model.config.model_warmup:
        name = printable(sample.name) or "without a name"
        if sample.batch_size == 0:
            yield warning(
                model.config_path,
                "warmup-skipped",
                f"warmup sample {name!r} has batch_size 0, so it is skipped.",
                "set batch_size to 1 or more",
            )
            continue
        if sample.batch_size > max(1, model.config.max_batch_size):
            yield warning(
                model.config_path,
                "warmup-batch-size",
                f"warmup sample {name!r} has batch_size {sample.batch_size}, over the model's max_batch_size "
                f"{model.config.max_batch_size}; no real batch is that large.",
                "lower its batch_size",
            )
        yield from _inputs(model, name, sample)


def _inputs(model: Model, name: str, sample: Any) -> Iterator[Finding]:
    configured = {item.name: item for item in model.config.input}
    controls = {item.name for item in model.config.sequence_batching.control_input}
    needed = {key for key, item in configured.items() if not item.optional}
    for missing in sorted(needed - set(sample.inputs)):
        yield error(
            model.config_path,
            "warmup-input-missing",
            f"warmup sample {name!r} gives no data for input {printable(missing)!r}; the model fails to load.",
            "add the input to the sample",
        )
    for key, item in sorted(sample.inputs.items()):
        what = f"warmup sample {name!r}, input {printable(key)!r}"
        if key in configured:
            yield from _agrees(model, what, item, configured[key])
        elif key not in controls:
            yield error(
                model.config_path,
                "warmup-input-unknown",
                f"{what}: the model has no such input.",
                "name one of the configured inputs",
            )
        yield from _source(model, what, item)


def _agrees(model: Model, what: str, item: Any, configured: Any) -> Iterator[Finding]:
    given, wanted = list(item.dims), list(configured.dims)
    fits = len(given) == len(wanted) and all(b in (-1, a) for a, b in zip(given, wanted, strict=True))
    if enum_name(item, "data_type") != enum_name(configured, "data_type"):
        yield error(
            model.config_path,
            "warmup-data-type",
            f"{what} is {enum_name(item, 'data_type')}; the model's input is {enum_name(configured, 'data_type')}.",
            "use the input's data_type",
        )
    if not fits and all(dim > 0 for dim in given):
        yield error(
            model.config_path,
            "warmup-dims",
            f"{what} has dims {dims_text(given)}; the model's input has {dims_text(wanted)}.",
            "use the input's dims, without the batch dimension, with a size in place of each -1",
        )


def _source(model: Model, what: str, item: Any) -> Iterator[Finding]:
    if not item.dims or any(dim < 1 for dim in item.dims):
        yield error(
            model.config_path,
            "warmup-dims",
            f"{what} has dims {dims_text(item.dims)}; every size must be given.",
            "write a size in place of each -1",
        )
        return
    source = item.WhichOneof("input_data_type")
    if source == "input_data_file":
        yield from _file(model, what, item)
    elif source is None:
        yield error(
            model.config_path,
            "warmup-data-missing",
            f"{what} has no data.",
            "add zero_data: true, random_data: true or input_data_file",
        )


def _file(model: Model, what: str, item: Any) -> Iterator[Finding]:
    folder = model.path / "warmup"
    path = below(folder, item.input_data_file)
    if path is None or not is_regular(path):
        yield error(
            model.where(path or folder),
            "warmup-file-missing",
            f"{what} reads {printable(item.input_data_file)!r} in warmup/, which is not there; the model "
            "fails to load.",
            "add the file, or use zero_data: true",
        )
        return
    width = _WIDTHS.get(enum_name(item, "data_type"))
    if width is None:
        return  # strings have no fixed size
    wanted, found = width * math.prod(item.dims), path.stat().st_size
    if found != wanted:
        report = error if found < wanted else warning
        yield report(
            model.where(path),
            "warmup-file-size",
            f"{what} needs {wanted} bytes for dims {dims_text(item.dims)}; the file has {found}.",
            "write the raw little-endian values of exactly one sample, without the batch dimension",
        )


WARMUP_RULES: tuple[Rule, ...] = (warmup,)
