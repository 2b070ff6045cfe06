"""Files and folders that a configuration names: are they there, and of the right kind?"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config.document import Key
from pipeline.config.schema import Config, Data, Keras, Model, Output, Source

_WORDS_FOR_LABELS = ("digits", "source")  # what `labels` may be instead of a file


Found = Iterator[tuple[Key, str]]
Named = Iterator[tuple[Key, str, bool]]  # path of the key, file name, whether it is a folder


def source_files(config: Config, resolve: Callable[[str], Path]) -> Found:
    """(path of the key, message) for every file that the source needs and cannot have."""
    return _unusable_ones(_of_source(config.source), resolve)


def sample_files(config: Config, resolve: Callable[[str], Path]) -> Found:
    """The same for the golden samples' own data."""
    if isinstance(config.samples.from_, Data):
        yield from _unusable_ones(_of_data(config.samples.from_, ("samples", "from")), resolve)


def calibration_files(config: Config, resolve: Callable[[str], Path]) -> Found:
    """The same for data that calibrates int8."""
    for name, variant in config.variants.items():
        if variant.calibration is not None and variant.calibration.from_ is not None:
            key: Key = ("variants", name, "calibration", "from")
            yield from _unusable_ones(_of_data(variant.calibration.from_, key), resolve)


def label_files(config: Config, resolve: Callable[[str], Path]) -> Found:
    """The same for files of labels, which must fit their outputs."""
    for output, spec in config.outputs.items():
        if isinstance(spec.labels, str) and spec.labels not in _WORDS_FOR_LABELS:
            path = resolve(spec.labels)
            if message := _unusable(path, folder=False) or _wrong_labels(path, spec):
                yield ("outputs", output, "labels"), message


def _unusable_ones(named: Named, resolve: Callable[[str], Path]) -> Found:
    for key, name, folder in named:
        if message := _unusable(resolve(name), folder=folder):
            yield key, message


def _of_source(source: Source) -> Named:
    if source.train is not None:
        yield from _of_model(source.train.model, ("source", "train", "model"))
        yield from _of_data(source.train.data, ("source", "train", "data"))
    if source.checkpoint is not None:
        yield ("source", "checkpoint", "file"), source.checkpoint.file, False
        yield from _of_model(source.checkpoint.model, ("source", "checkpoint", "model"))
    yield from _of_model(source.model, ("source", "model"))
    if source.keras is not None:
        yield from _of_keras(source.keras)
    if source.saved_model is not None:
        yield ("source", "saved_model", "directory"), source.saved_model.directory, True
    for kind, file in (("onnx", source.onnx), ("torchscript", source.torchscript)):
        if file is not None:
            yield ("source", kind, "file"), file.file, False


def _of_keras(keras: Keras) -> Named:
    if keras.file is not None:
        yield ("source", "keras", "file"), keras.file, False
    if keras.train is not None:
        yield from _of_callable(keras.train.callable, ("source", "keras", "train"))
        yield from _of_data(keras.train.data, ("source", "keras", "train", "data"))


def _of_model(model: Model | None, key: Key) -> Named:
    if model is not None:
        yield from _of_callable(model.callable, key)


def _of_data(data: Data, key: Key) -> Named:
    if data.images is not None:
        yield (*key, "images"), data.images, True
    if data.arrays is not None:
        yield (*key, "arrays"), data.arrays, False
    yield from _of_callable(data.callable, key)


def _of_callable(named: str | None, key: Key) -> Named:
    file = (named or "").partition(":")[0]
    if file.endswith(".py"):
        yield (*key, "callable"), file, False


def _unusable(path: Path, *, folder: bool) -> str:
    """Why ``path`` cannot be read as a file (or folder), or an empty text."""
    kind = "folder" if folder else "file"
    try:
        if not path.exists():
            siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
            return f"no such {kind}: {path}" + (f"; did you mean {near[0]}?" if near else "")
        if path.is_dir() != folder:
            return f"expected a {kind}; {path} is a {'file' if folder else 'folder'}"
    except OSError as error:
        return f"cannot look for {path}: {error.strerror}"
    return "" if os.access(path, os.R_OK) else f"not allowed to read {path}"


def _wrong_labels(path: Path, spec: Output) -> str:
    """Why a readable label file does not fit its output, or an empty text."""
    try:
        count = len(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        return f"{path} is no UTF-8 text file: {error}"
    size = spec.shape[-1] if spec.shape else None
    if isinstance(size, int) and size != count:
        return f"{path} has {count} lines, one per label, for a last dimension of {size}"
    return ""
