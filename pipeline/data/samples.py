"""Golden samples: real inputs with the source model's answers; everything later is judged against them.

``samples.npz`` holds samples of equal shapes stacked as groups::

    batched        bool
    sha256         digest over all names, dtypes, shapes and values
    targets        int64 [samples], -1 for unknown
    0/rows         int64: numbers of the samples in group 0
    0/inputs/<name>, 0/outputs/<name>    one leading dimension for the group's samples
    images         uint8: the image files, one after the other; image_ends: where each ends (absent without images)
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import files, signatures
from pipeline.base.errors import ConfigError, StageError
from pipeline.base.ports import written
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Array, GoldenSamples, Progress, Runtime, Sample, Signature, Tensors
from pipeline.data import datasets
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Data, Samples
from pipeline.schema.variants import MIN_CALIBRATION_SAMPLES

FILE_NAME = "samples.npz"
_LARGER = "name a larger data set under `calibration.from`"
_OF_ITS_OWN = "give the variant data of its own: calibration: {from: {images: folder/}}"


def make(
    samples: Samples,
    train_data: Data | None,
    *,
    signature: Signature,
    resolve: Resolve,
    runtime: Runtime,
    seed: int,
    out_dir: Path,
) -> Outcome:
    """Choose samples the model was not trained on, ask the source model about each alone, and write ``samples.npz``.

    The values are ``count``, ``sha256``, ``batched`` and ``labels`` (the data's class names). The training data's
    held-out part, which the training ``seed`` fixed, is used for ``from: data.test``; class folders are matched by name
    to the signature's labels, where these are known.

    Raises:
        ConfigError: there is no data to take them from.
        StageError: the source model failed on a sample, or its answers do not fit the YAML's outputs.
    """
    dataset = _dataset(samples, train_data, signature, resolve, seed)
    available = len(dataset.test.inputs)
    count = min(samples.count, available)
    targets, note = _targets(dataset, signature)
    few = f"all {available} held-out samples are used; `samples.count` asks for {samples.count}"
    notes = [*([few] if count < samples.count else []), *([note] if note else [])]
    # Ascending, so that the order of samples says nothing about the seed and files are read in order.
    rows = np.sort(np.random.default_rng(samples.seed).choice(available, size=count, replace=False))
    chosen = [_answered(dataset.test, signature, runtime, int(row)) for row in rows]
    known = np.full(count, -1, np.int64) if targets is None else targets[rows]
    batched = signature.batch is not None
    sha256 = write(out_dir, chosen, known, batched)
    values = {"count": count, "sha256": sha256, "batched": batched, "labels": list(dataset.labels)}
    return Outcome(notes=tuple(notes), values=values)


def calibration(task: Task, progress: Progress) -> Outcome:
    """The step that chooses samples to measure int8 ranges on, none of them a golden one; they have no outputs.

    Where the data has a training part, that is used; the training seed fixes its split and the choice.

    Arguments: ``data`` as in the YAML, ``count`` wanted, ``trained`` (the model was trained on it, and it is split as
    it was then), ``own`` (it is named for the calibration), ``seed`` of the training, ``signature``. Unkeyed:
    ``folder`` of the YAML, and ``where`` in it.

    Raises:
        StageError: fewer than 16 samples are left.
    """
    given, judges = task.arguments, golden(task)
    data, seed, count = Data.model_validate_json(files.canonical_json(given["data"])), given["seed"], given["count"]
    signature, resolve = signatures.from_json(given["signature"]), Path(given["folder"]).joinpath
    dataset = datasets.load(data, signature=signature, resolve=resolve, seed=seed, split=given["trained"])
    part = dataset.test if dataset.train is None else dataset.train
    samples = list(islice(_without(judges, part, seed), count))
    if len(samples) < MIN_CALIBRATION_SAMPLES:
        judging = len(part.inputs) - len(samples)
        left_out = f", {judging} of them golden samples: those judge, so they are not used" if judging else ""
        raise StageError(
            f"calibration: {len(samples)} samples are left to calibrate on; {MIN_CALIBRATION_SAMPLES} are the least",
            found=f"{len(part.inputs)} in all{left_out}",
            where=given["where"],
            hint=_LARGER if given["own"] else _OF_ITS_OWN,
        )
    sha256 = write(task.out_dir, samples, np.full(len(samples), -1, np.int64), judges.batched)
    notes = [f"all {len(samples)} samples are used; {count} were asked for"] if len(samples) < count else []
    return Outcome(notes=tuple(notes), values={"count": len(samples), "sha256": sha256})


def golden(task: Task) -> GoldenSamples:
    """The golden samples of a step's upstream ``samples``."""
    return read(task.upstream["samples"].directory / FILE_NAME)


def _without(golden: GoldenSamples, part: datasets.Split, seed: int) -> Iterator[Sample]:
    """Inputs in an order that the seed fixes, but for those of golden samples."""

    def digest_of(inputs: Tensors) -> str:
        return digest([Sample(inputs=inputs, outputs={})], np.zeros(0, np.int64), False)

    judges = {digest_of(sample.inputs) for sample in golden.samples}
    for row in np.random.default_rng(seed).permutation(len(part.inputs)):
        inputs = part.inputs[int(row)]
        if digest_of(inputs) not in judges:
            yield Sample(inputs=inputs, outputs={})


def read(path: Path) -> GoldenSamples:
    """Read ``samples.npz``; needs numpy only.

    Raises:
        StageError: not a samples file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
        targets = content["targets"]
        images = _images(content, len(targets))
        rows: list[Sample | None] = [None] * len(targets)
        group = 0
        while f"{group}/rows" in content:
            for position, row in enumerate(content[f"{group}/rows"]):
                rows[row] = Sample(
                    inputs=_member(content, f"{group}/inputs/", position),
                    outputs=_member(content, f"{group}/outputs/", position),
                    target=int(targets[row]) if targets[row] >= 0 else None,
                    image=images[row],
                )
            group += 1
        samples = tuple(sample for sample in rows if sample is not None)
        if not samples or len(samples) != len(rows):
            raise ValueError(f"{len(samples)} of {len(rows)} samples")
        return GoldenSamples(samples=samples, batched=bool(content["batched"]), sha256=str(content["sha256"]))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        found = f"{type(error).__name__}: {error}"
        hint = "run the build again"
        raise StageError("samples: not a readable samples file", found=found, where=str(path), hint=hint) from error


def batches(golden: GoldenSamples, size: int) -> Iterator[Sample]:
    """Join samples of equal shapes into batches of exactly ``size`` along dimension 0, so that every sample is in one.

    The last batch of each shape is filled up by starting over. Joined samples have no target.

    Raises:
        ValueError: a size other than 1 for a model without a batch dimension.
    """
    if size == 1:
        yield from golden.samples
        return
    if not golden.batched or size < 1:
        raise ValueError(f"no batches of {size}: the model has no batch dimension")
    for group in _groups(golden.samples).values():
        for start in range(0, len(group), size):
            members = [golden.samples[group[(start + step) % len(group)]] for step in range(size)]
            yield Sample(
                inputs=_joined([sample.inputs for sample in members]),
                outputs=_joined([sample.outputs for sample in members]),
            )


def chunks(golden: GoldenSamples, size: int) -> Iterator[tuple[Sample, ...]]:
    """Every sample once, in runs of equal input shapes, ``size`` at most; one by one where they cannot be joined."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    for sample in golden.samples:
        by_shape.setdefault(tuple(array.shape for array in sample.inputs.values()), []).append(sample)
    step = size if golden.batched else 1
    for group in by_shape.values():
        for start in range(0, len(group), step):
            yield tuple(group[start : start + step])


def digest(samples: Sequence[Sample], targets: Array, batched: bool) -> str:
    """Hex SHA-256 over names, dtypes, shapes and values of all samples, and their image files, in order."""
    running = hashlib.sha256(f"{batched} {len(samples)}".encode())
    running.update(np.ascontiguousarray(targets, np.int64).data)
    for sample in samples:
        for role, tensors in (("inputs", sample.inputs), ("outputs", sample.outputs)):
            for name in sorted(tensors):
                array = np.ascontiguousarray(tensors[name])
                running.update(f"{role}/{name} {array.dtype.str} {array.shape}".encode())
                running.update(array.tobytes())
        running.update(sample.image)
    return running.hexdigest()


def _dataset(
    samples: Samples, train_data: Data | None, signature: Signature, resolve: Resolve, seed: int
) -> datasets.Dataset:
    if isinstance(samples.from_, Data):
        return datasets.load(samples.from_, signature=signature, resolve=resolve, seed=seed, split=False)
    if train_data is None:
        raise ConfigError(
            "samples: `from: data.test` is the held-out part of source.train.data, and this source does not train",
            hint="name a data set: samples: {from: {images: photos/}}, or arrays, callable, dataset",
        )
    return datasets.load(train_data, signature=signature, resolve=resolve, seed=seed)


def _targets(dataset: datasets.Dataset, signature: Signature) -> tuple[Array | None, str]:
    """Class indices in the order of the output's labels, where the data names its classes."""
    targets, names = dataset.test.targets, dataset.labels
    labels = next((spec.labels for spec in signature.outputs if spec.labels), ())
    if targets is None or not names or not labels or names == labels:
        return targets, ""
    if set(names) <= set(labels):
        index = np.asarray([labels.index(name) for name in names], np.int64)
        return index[targets], ""
    if len(names) == len(labels):
        return targets, "the data's classes are not named as the labels; they are taken in sorted order"
    unknown = ", ".join(sorted(set(names) - set(labels))[:5])
    return None, f"accuracy is not measured: classes of the data that are no label of the output: {unknown}"


def _answered(part: datasets.Split, signature: Signature, runtime: Runtime, row: int) -> Sample:
    inputs = part.inputs[row]
    outputs = runtime.run(inputs)
    letters = signature.sizes(inputs)
    wrong = []
    for spec in signature.outputs:
        shape = outputs[spec.name].shape
        expected = [letters.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape]
        pairs = zip(shape, expected, strict=False)
        if len(shape) != len(expected) or any(size != dim for size, dim in pairs if isinstance(dim, int)):
            wrong.append(f"{spec.name} has shape {list(shape)}; the YAML says {written(spec.shape)}")
        elif np.issubdtype(outputs[spec.name].dtype, np.floating) and np.isnan(outputs[spec.name]).any():
            wrong.append(f"{spec.name} holds NaN")
    if wrong:
        given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        raise StageError(
            "samples: the source model's answer does not fit `outputs`",
            found="\n".join(wrong),
            where=f"held-out sample {row}, inputs {given}",
            hint="correct `outputs` in the YAML, or the model",
        )
    image = part.file(row) if signature.image and part.file else b""
    return Sample(inputs=inputs, outputs=outputs, image=image)


def _groups(samples: Sequence[Sample]) -> dict[tuple[Any, ...], list[int]]:
    """Numbers of the samples by their shapes, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, sample in enumerate(samples):
        named = (*sorted(sample.inputs.items()), *sorted(sample.outputs.items()))
        groups.setdefault(tuple((name, array.shape) for name, array in named), []).append(number)
    return groups


def _joined(parts: Sequence[Tensors]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _member(content: Mapping[str, Array], prefix: str, position: int) -> dict[str, Array]:
    return {name.removeprefix(prefix): array[position] for name, array in content.items() if name.startswith(prefix)}


def _images(content: Mapping[str, Array], count: int) -> list[bytes]:
    if "images" not in content:
        return [b""] * count
    whole, ends = content["images"].tobytes(), content["image_ends"].tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def write(out_dir: Path, samples: Sequence[Sample], targets: Array, batched: bool) -> str:
    """Write ``samples.npz`` into a folder; its digest."""
    sha256 = digest(samples, targets, batched)
    content: dict[str, Array] = {
        "batched": np.asarray(batched),
        "sha256": np.asarray(sha256),
        "targets": np.ascontiguousarray(targets, np.int64),
    }
    for group, rows in enumerate(_groups(samples).values()):
        content[f"{group}/rows"] = np.asarray(rows, np.int64)
        for role in ("inputs", "outputs"):
            parts = [getattr(samples[row], role) for row in rows]
            for name in parts[0]:
                content[f"{group}/{role}/{name}"] = np.stack([part[name] for part in parts])
    if any(sample.image for sample in samples):
        content["images"] = np.frombuffer(b"".join(sample.image for sample in samples), np.uint8)
        content["image_ends"] = np.cumsum([len(sample.image) for sample in samples], dtype=np.int64)
    stream = io.BytesIO()
    np.savez(stream, **content)  # without compression or dates: same content, same bytes
    files.write_atomic(out_dir / FILE_NAME, stream.getvalue())
    return sha256
