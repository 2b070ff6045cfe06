"""Labelled data with a train and a test part, as the samples a model takes: named arrays, one dict per sample."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.base import files
from pipeline.base.errors import ConfigError, StageError, listed
from pipeline.base.ports import written
from pipeline.base.values import NUMPY_DTYPES, Array, Signature, fits
from pipeline.data import image_data, images, user_code
from pipeline.data.user_code import Resolve
from pipeline.schema.model import Data

Images = image_data.ImageArrays | image_data.ImageFiles

_MOST_LISTED = 10
_RELATIVE = "`arrays` is relative to the YAML"


class InputRows(Protocol):
    """What a split holds its samples in: a list, or something that makes them when asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Array]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One part of a data set.

    Attributes:
        inputs: one dict per sample, arrays by input name; where the model is batched each starts with a dimension of 1.
        targets: int64 class indices ``[samples]``, or None where there are none.
        file: the image file of a sample, by its number; None where samples are no images.
    """

    inputs: InputRows
    targets: Array | None
    file: Callable[[int], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set; ``train`` is None where it has only judging data, ``labels`` is empty where classes have no names."""

    train: Split | None
    test: Split
    labels: tuple[str, ...]


class Rows:
    """Samples that are rows of whole arrays; makes no copies."""

    def __init__(self, arrays: Mapping[str, Array], rows: Array, *, leading: bool) -> None:
        self._arrays, self._rows, self._leading = arrays, rows, leading

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Array]:
        row = int(self._rows[index])
        if self._leading:
            return {name: array[row : row + 1] for name, array in self._arrays.items()}
        return {name: np.asarray(array[row]) for name, array in self._arrays.items()}

    def take(self, rows: Array) -> Rows:
        """The samples of the given numbers, in that order."""
        return Rows(self._arrays, self._rows[rows], leading=self._leading)


def load(data: Data, *, signature: Signature, resolve: Resolve, seed: int, split: bool = True) -> Dataset:
    """Load a data set as samples of the signature's inputs; the seed fixes the split of data without a test part.

    Without ``split`` the data is only judged on, never trained on: files without a test part then belong to that as a
    whole. The embedded digits are split all the same, since models are trained on their first part.

    Raises:
        ConfigError: the section does not fit the signature, or a path is missing.
        StageError: the data itself is damaged or does not fit the signature.
        MissingError: a library is absent, or a data set could not be fetched.
    """
    if data.dataset == "digits":
        pixels, classes = image_data.digits()
        digits = image_data.ImageArrays(pixels, image_data.ImageInput.of(data, signature))
        return _parted(digits, classes, images.DIGIT_LABELS, data, seed)
    if data.dataset is not None:
        return _downloaded(data, signature, resolve(data.root))
    if data.images is not None:
        return _image_folder(data, signature, resolve(data.images), seed, split)
    if data.arrays is not None:
        arrays, targets = _read_arrays(resolve(data.arrays), signature)
        rows = Rows(arrays, np.arange(len(next(iter(arrays.values())))), leading=signature.batch is not None)
        return _parted(rows, targets, (), data, seed, split)
    return _user_data(data, signature, resolve)


def trainable(dataset: Dataset) -> tuple[Split, Split]:
    """The train and the test part, both labelled.

    Raises:
        ConfigError: one of them is missing, or has no targets.
    """
    if dataset.train is None or dataset.train.targets is None or dataset.test.targets is None:
        raise ConfigError(
            "source: training needs labelled data with a train and a test part",
            hint="add `target` to the arrays, a folder per class to images, or 'train' to your callable's result",
        )
    return dataset.train, dataset.test


def digests(data: Data, resolve: Resolve) -> dict[str, str]:
    """SHA-256 of every file the data comes from, by path relative to the YAML's wording; imports nothing heavy.

    The embedded digits belong to scikit-learn's version. MNIST and CIFAR-10 have one content, whose MD5 torchvision
    checks when it fetches them, so they are named by the YAML and not hashed: the first build may be what fetches them.

    Raises:
        ConfigError: a file or folder is missing.
    """
    if data.images is not None:
        folder = resolve(data.images)
        found = image_data.scan(folder)
        names = {path: path.relative_to(folder).as_posix() for path in (*found.train, *found.test)}
        return {f"{data.images}/{name}": files.sha256_file(path) for path, name in names.items()}
    if data.arrays is not None:
        path = resolve(data.arrays)
        if not path.is_file():
            raise ConfigError("no such file", found=data.arrays, where=str(path), hint=_RELATIVE)
        return {data.arrays: files.sha256_file(path)}
    if data.callable is not None:
        return user_code.digests(data.callable, resolve)
    return {}


def tools(data: Data) -> tuple[str, ...]:
    """Distributions whose version decides the samples."""
    if data.dataset == "digits":
        return ("numpy", "pillow", "scikit-learn")
    if data.dataset is not None:
        return ("numpy", "pillow", "torch", "torchvision")
    return ("numpy", "pillow") if data.images is not None else ("numpy",)


def stratified_split(targets: Array, test_fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers of the train and the test part, ascending; each class gives the same share to the test part.

    The seed chooses them. A class gives at least one sample, unless it has no other: then that stays in the train part.
    """
    random = np.random.default_rng(seed)
    held_out: list[Array] = []
    for label in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == label))
        count = min(max(1, round(len(rows) * test_fraction)), len(rows) - 1)
        held_out.append(rows[:count])
    test = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(targets)), test), test


def _parted(
    samples: Rows | Images, targets: Array | None, labels: tuple[str, ...], data: Data, seed: int, split: bool = True
) -> Dataset:
    if targets is None or not split:
        return Dataset(train=None, test=_split(samples, targets), labels=labels)
    parts = stratified_split(targets, data.test_fraction, seed)
    train, test = (_split(samples.take(rows), targets[rows]) for rows in parts)
    return Dataset(train=train, test=test, labels=labels)


def _split(samples: Rows | Images, targets: Array | None) -> Split:
    return Split(inputs=samples, targets=targets, file=None if isinstance(samples, Rows) else samples.file)


def _downloaded(data: Data, signature: Signature, root: Path) -> Dataset:
    assert data.dataset is not None
    train, train_targets, test, test_targets, labels = image_data.downloaded(data.dataset, root)
    target = image_data.ImageInput.of(data, signature)
    return Dataset(
        train=_split(image_data.ImageArrays(train, target), train_targets),
        test=_split(image_data.ImageArrays(test, target), test_targets),
        labels=labels,
    )


def _image_folder(data: Data, signature: Signature, folder: Path, seed: int, split: bool) -> Dataset:
    target = image_data.ImageInput.of(data, signature)
    found = image_data.scan(folder)
    test = image_data.ImageFiles(found.test, target)
    targets = np.asarray(found.test_targets, np.int64) if found.labels else None
    if found.train:
        train = _split(image_data.ImageFiles(found.train, target), np.asarray(found.train_targets, np.int64))
        return Dataset(train=train, test=_split(test, targets), labels=found.labels)
    return _parted(test, targets, found.labels, data, seed, split)


def _read_arrays(path: Path, signature: Signature) -> tuple[dict[str, Array], Array | None]:
    names = [spec.name for spec in signature.inputs]
    try:
        if path.suffix == ".npy":
            if len(names) != 1:
                raise ConfigError(
                    f"{path.name} holds one array and the model has {len(names)} inputs",
                    where=str(path),
                    hint="use an .npz whose keys are the input names",
                )
            arrays = {names[0]: np.load(path, allow_pickle=False, mmap_mode="r")}
        else:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=str(path), hint=_RELATIVE) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        hint = "write it with numpy.savez(path, **arrays) or numpy.save, without object arrays"
        raise StageError("datasets: not a readable array file", found=found, where=str(path), hint=hint) from error
    targets = arrays.pop("target", None) if "target" not in names else None
    _check_arrays(arrays, targets, signature, str(path))
    return arrays, None if targets is None else targets.astype(np.int64)


def _check_arrays(arrays: Mapping[str, Array], targets: Array | None, signature: Signature, where: str) -> None:
    """Report every disagreement between whole arrays (first axis the samples) and the signature at once."""
    wrong = _name_problems(arrays, signature)
    if not wrong:
        rows = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
        if targets is not None:
            rows["target"] = targets.shape[0] if targets.ndim == 1 else None
            if not np.issubdtype(targets.dtype, np.integer):
                wrong.append(f"target is {targets.dtype}; expected integers, one class index per sample")
        if len(set(rows.values())) != 1 or None in rows.values():
            wrong.append(f"numbers of samples differ: {', '.join(f'{name} {count}' for name, count in rows.items())}")
        elif 0 in rows.values():
            wrong.append("no samples")
        wrong += _shape_problems({name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}, signature)
    _refuse(wrong, where)


def _refuse(wrong: Sequence[str], where: str) -> None:
    if wrong:
        found = listed(wrong, _MOST_LISTED, "\n")
        hint = "change the data or `inputs` in the YAML"
        raise StageError("datasets: the data does not fit `inputs`", found=found, where=where, hint=hint)


def _name_problems(arrays: Mapping[str, Any], signature: Signature) -> list[str]:
    expected, found = {spec.name for spec in signature.inputs}, set(arrays)
    absent = [f"no array for input {name}" for name in sorted(expected - found)]
    known = ", ".join(sorted(expected))
    return absent + [f"{name} is not an input (they are {known})" for name in sorted(found - expected)]


def _shape_problems(sample: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], signature: Signature) -> list[str]:
    """One sample's dtypes and shapes, without the batch, against the signature's: equal letters are equal sizes."""
    wrong, letters = [], dict[str, int]()
    for spec in signature.inputs:
        dtype, shape = sample[spec.name]
        expected = spec.shape[1:] if signature.batch is not None else spec.shape
        if dtype != NUMPY_DTYPES[spec.dtype]:
            wrong.append(f"{spec.name} is {dtype}; expected {spec.dtype}")
        if not fits(shape, expected, letters):
            wrong.append(f"{spec.name} has shape {list(shape)} per sample; expected {written(expected)}")
    return wrong


def _user_data(data: Data, signature: Signature, resolve: Resolve) -> Dataset:
    assert data.callable is not None
    result = user_code.call(data.callable, resolve, data.args, f"datasets: {data.callable} failed")
    if not isinstance(result, Mapping) or "test" not in result or not set(result) <= {"train", "test", "labels"}:
        found = f"keys {', '.join(map(str, result))}" if isinstance(result, Mapping) else type(result).__name__
        raise StageError(
            f"datasets: {data.callable} returned something else than a data set",
            found=found,
            hint="return {'train': (inputs, targets), 'test': (inputs, targets), 'labels': [names]}; "
            "only 'test' is required",
        )
    given = [name for name in ("train", "test") if name in result]
    parts = {name: _user_part(data.callable, name, result[name], signature) for name in given}
    return Dataset(train=parts.get("train"), test=parts["test"], labels=tuple(map(str, result.get("labels", ()))))


def _user_part(reference: str, name: str, part: Any, signature: Signature) -> Split:
    where = f"{reference}, part {name!r}"
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise StageError("datasets: a part is (inputs, targets)", found=type(part).__name__, where=where)
    inputs, targets = part[0], None if part[1] is None else np.asarray(part[1])
    if isinstance(inputs, Mapping):
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        _check_arrays(arrays, targets, signature, where)
        leading = signature.batch is not None
        samples: InputRows = Rows(arrays, np.arange(len(next(iter(arrays.values())))), leading=leading)
    else:
        samples = _user_rows(inputs, targets, signature, where)
    return Split(inputs=samples, targets=None if targets is None else targets.astype(np.int64))


def _user_rows(inputs: Any, targets: Array | None, signature: Signature, where: str) -> list[dict[str, Array]]:
    rows = [{key: np.asarray(value) for key, value in row.items()} for row in inputs]
    wrong = [] if rows else ["no samples"]
    if targets is not None and (targets.shape != (len(rows),) or not np.issubdtype(targets.dtype, np.integer)):
        wrong.append(f"targets are {targets.dtype}{list(targets.shape)}; expected {len(rows)} integers")
    for number, row in enumerate(rows):
        shapes = {key: (value.dtype, value.shape) for key, value in row.items()}
        problems = _name_problems(row, signature) or _shape_problems(shapes, signature)
        wrong += [f"sample {number}: {problem}" for problem in problems]
    _refuse(wrong, where)
    if signature.batch is None:
        return rows
    return [{key: value[None] for key, value in row.items()} for row in rows]
