"""What the exporters run a model on: two examples that differ in data and in the size of every dynamic dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.base.errors import StageError
from pipeline.base.values import Array, GoldenSamples, Sample, Signature, Tensors, fits
from pipeline.capture import lines
from pipeline.capture.torch_module import NamedModule

_BATCH_SIZES = range(2, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One run of the source model.

    Attributes:
        inputs: in the signature's order.
        outputs: what the source model answers, in the signature's order.
        sizes: the size of each dynamic dimension of the inputs, by letter.
    """

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Two examples of a model: what is traced and exported, and what the result is tried on.

    Attributes:
        notes: dynamic dimensions whose size could not be varied between the two, with the reason.
    """

    first: Example
    second: Example
    notes: tuple[str, ...]


def choose(module: NamedModule, signature: Signature, golden: GoldenSamples) -> Examples:
    """Take two examples from the golden samples and run the source model on both.

    Batch sizes differ, and so do the other dynamic dimensions: by taking samples of other sizes where there are any,
    else by cutting or repeating real data. No dynamic dimension of the first has size 1, which exporters take for a
    constant.

    Raises:
        StageError: the model fails on a batch, or its outputs do not have the signature's shapes: it is itself bound
            to one size, which no export can mend. ``where`` names the line.
    """
    batch = signature.batch if golden.batched else None
    first_batch, second_batch = _two_batch_sizes(signature)
    inputs = _inputs(golden.samples, 0, first_batch if batch else None)
    for letter, size in signature.sizes(inputs).items():
        if size < 2 and letter != batch:
            inputs = resized(inputs, signature, letter, 2)
    first = run(module, signature, inputs)
    other = _unlike_the_first(golden.samples, signature)
    inputs = _inputs(golden.samples, other, second_batch if batch else None)
    notes = []
    for letter, size in signature.sizes(inputs).items():
        if letter != batch and size == first.sizes[letter]:
            inputs, reason = _vary(module, signature, inputs, letter)
            notes += [f"dimension {letter} was seen at size {size} only: {reason}"] if reason else []
    return Examples(first=first, second=run(module, signature, inputs), notes=tuple(notes))


def run(module: NamedModule, signature: Signature, inputs: Tensors) -> Example:
    """Run the source model and check its outputs' shapes against the signature; a StageError where they do not fit."""
    tensors = tuple(torch.from_numpy(inputs[spec.name].copy()) for spec in signature.inputs)
    described = ", ".join(f"{spec.name} {list(inputs[spec.name].shape)}" for spec in signature.inputs)
    try:
        with torch.inference_mode():
            outputs = module(*(tensor.clone() for tensor in tensors))
    except StageError:
        raise
    except Exception as error:
        raise StageError(
            "export: the model does not run at this batch size or length",
            found=f"{described}: {type(error).__name__}: {error}",
            where=lines.of_error(error),
            hint="take sizes from the inputs in `forward`, or write numbers for letters in the YAML's shapes",
        ) from error
    sizes = signature.sizes(inputs)
    bound = dict(sizes)
    for spec, tensor in zip(signature.outputs, outputs, strict=True):
        if not fits(tensor.shape, spec.shape, bound):
            raise StageError(
                f"export: output {spec.name} does not have the YAML's shape",
                found=f"{list(tensor.shape)} for {described}; the YAML says [{', '.join(map(str, spec.shape))}]",
                where=lines.of_fixed_size(module, tensors),
                hint="take sizes from the inputs in `forward`, or correct the YAML's shapes",
            )
    return Example(inputs=tensors, outputs=outputs, sizes=sizes)


def _two_batch_sizes(signature: Signature) -> tuple[int, int]:
    """Small ones that no fixed dimension has, so that a size in the wrong place cannot pass for the batch."""
    taken = {dim for spec in (*signature.inputs, *signature.outputs) for dim in spec.shape}
    free = [size for size in _BATCH_SIZES if size not in taken]
    return free[0], free[1]


def _unlike_the_first(samples: tuple[Sample, ...], signature: Signature) -> int:
    """Index of a sample of other sizes than the first where there are any, else of the last."""
    sizes = [signature.sizes(sample.inputs) for sample in samples]

    def differences(index: int) -> int:
        return sum(size != sizes[0][letter] for letter, size in sizes[index].items())

    return max(range(len(samples)), key=lambda index: (differences(index), index))


def _inputs(samples: tuple[Sample, ...], start: int, batch_size: int | None) -> dict[str, Array]:
    """Inputs of one sample, or of ``batch_size`` samples of its shape joined, counted from it and around."""
    first = samples[start].inputs
    if batch_size is None:
        return dict(first)
    rows = list(_alike(samples, start))
    chosen = [rows[index % len(rows)] for index in range(batch_size)]
    return {name: np.concatenate([row[name] for row in chosen]) for name in first}


def _alike(samples: tuple[Sample, ...], start: int) -> Iterator[Tensors]:
    shapes = {name: array.shape for name, array in samples[start].inputs.items()}
    for sample in (*samples[start:], *samples[:start]):
        if {name: array.shape for name, array in sample.inputs.items()} == shapes:
            yield sample.inputs


def _vary(
    module: NamedModule, signature: Signature, inputs: dict[str, Array], letter: str
) -> tuple[dict[str, Array], str]:
    """Give ``letter`` another size that the model runs at; on failure the inputs as they are, and the reason."""
    size = signature.sizes(inputs)[letter]
    reason = ""
    for other in (size - 1 if size > 2 else size + 1, 2 * size):
        varied = resized(inputs, signature, letter, other)
        try:
            run(module, signature, varied)
        except StageError as error:
            reason = reason or f"the model does not run at {other}: {error.found.splitlines()[0]}"
        else:
            return varied, ""
    return inputs, reason


def resized(inputs: Tensors, signature: Signature, letter: str, size: int) -> dict[str, Array]:
    """Give a dynamic dimension another size: every axis of that letter is cut, or repeated from its start."""
    result = dict(inputs)
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape):
            if dim == letter:
                result[spec.name] = result[spec.name].take(range(size), axis=axis, mode="wrap")
    return result
