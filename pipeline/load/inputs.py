"""What is asked: rows of array files, images, or values made up from the model's own configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.base.values import Array, Tensors
from pipeline.servers.triton.client.prediction import read_inputs

MOST = 64
"""Most inputs of one load: each is asked alone first."""
_MADE_UP = 16
_SEED = 0
_LENGTH, _PIXELS, _CHANNELS = 16, 224, 3  # sizes for dynamic dimensions: of a sequence, and of an image
_FEW = 8  # a tensor of fewer integers gets larger ones, so that inputs differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One input of batch 1 (none for a model without batching), and where it is from."""

    inputs: Tensors
    origin: str


def questions(config: Any, images: Sequence[Path], arrays: Sequence[Path]) -> list[Question]:
    """The inputs of a load, at most ``MOST``; made up where no files are named.

    Images are for a model that takes one, or the raw bytes of a file; arrays are ``.npy`` or ``.npz`` files, and each
    row of a batched model's is an input of its own.

    Raises:
        ConfigError: a file is not readable, or does not fit the model.
    """
    if not images and not arrays:
        return list(_made_up(config))

    def given() -> Iterator[Question]:
        for file in images:
            yield Question(inputs=read_inputs(file, config), origin=file.name)
        for file in arrays:
            yield from _rows(read_inputs(file, config), file.name, batched=config.max_batch_size > 0)

    return list(islice(given(), MOST))


def _rows(inputs: Tensors, name: str, *, batched: bool) -> Iterator[Question]:
    if not batched:
        yield Question(inputs=inputs, origin=name)
    for row in range(len(next(iter(inputs.values())))) if batched else ():
        yield Question(inputs={key: array[row : row + 1] for key, array in inputs.items()}, origin=f"{name} row {row}")


def _made_up(config: Any) -> Iterator[Question]:
    """The same values on every machine: floats from 0 up to something that differs by input, small integers."""
    generator, batch = np.random.default_rng(_SEED), (1,) if config.max_batch_size > 0 else ()
    for number in range(_MADE_UP):
        shapes = ((tensor, (*batch, *_sizes(tensor))) for tensor in config.input)
        inputs = {tensor.name: _values(tensor, shape, number, generator) for tensor, shape in shapes}
        yield Question(inputs=inputs, origin=f"made up {number}")


def _sizes(tensor: Any) -> tuple[int, ...]:
    """The configured dims, with sizes in place of -1 that most models take; equal ones in all inputs of a kind."""
    dims = list(tensor.dims)
    if len(dims) < 3:
        return tuple(_LENGTH if size < 0 else int(size) for size in dims)
    channels = len(dims) - 1 if tensor.format == tensor.FORMAT_NHWC else len(dims) - 3
    return tuple(
        int(size) if size >= 0 else (_CHANNELS if axis == channels else _PIXELS) for axis, size in enumerate(dims)
    )


def _values(tensor: Any, shape: tuple[int, ...], number: int, generator: np.random.Generator) -> Array:
    field = tensor.DESCRIPTOR.fields_by_name["data_type"]
    kind = str(field.enum_type.values_by_number[tensor.data_type].name).removeprefix("TYPE_")
    if kind == "STRING":
        texts = [f"{number}-{position}".encode() for position in range(int(np.prod(shape)))]
        return np.array(texts, np.object_).reshape(shape)
    if kind == "BOOL":
        return generator.random(shape) < 0.5
    if kind.startswith("FP"):
        return (generator.random(shape) * (number + 1) / _MADE_UP).astype(f"float{kind[2:]}")
    if kind == "BF16":
        raise ConfigError(f"load: input {tensor.name} is BF16, which numpy does not hold")
    high = 256 if kind == "UINT8" else 2 if int(np.prod(shape)) >= _FEW else 10  # pixels; ids, and masks of 0 and 1
    return generator.integers(0, high, shape).astype(kind.lower())
