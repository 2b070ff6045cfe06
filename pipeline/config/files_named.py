"""Files and folders that a configuration names: are they there, and of the right kind?"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.config.document import Key
from pipeline.config.subject import Found, Subject
from pipeline.schema.model import Output
from pipeline.sources import table as sources
from pipeline.sources.reads import code_file

_WORDS_FOR_LABELS = ("digits", "source")  # what `labels` may be instead of a file


def source_files(subject: Subject) -> Found:
    """Every file that the source needs, but for its data, and cannot have."""
    source = subject.config.source
    files = sources.of(source).files(source)
    yield from _unusable_ones(subject, ((("source", *path), name, folder) for path, name, folder in files))


def data_files(subject: Subject, section: str) -> Found:
    """The same for the data of one section: what trains, the golden samples, or what calibrates int8."""
    for key, data in subject.data_sets:
        if key[0] != section:
            continue
        code = code_file(data.callable, ())
        named: list[tuple[Key, str, bool]] = [((*key, *path), name, folder) for path, name, folder in code]
        if data.images is not None:
            named.append(((*key, "images"), data.images, True))
        if data.arrays is not None:
            named.append(((*key, "arrays"), data.arrays, False))
        yield from _unusable_ones(subject, named)


def label_files(subject: Subject) -> Found:
    """The same for files of labels, which must fit their outputs."""
    for output, spec in subject.config.outputs.items():
        if isinstance(spec.labels, str) and spec.labels not in _WORDS_FOR_LABELS:
            path = subject.resolve(spec.labels)
            if message := _unusable(path, folder=False) or _wrong_labels(path, spec):
                yield ("outputs", output, "labels"), message


def _unusable_ones(subject: Subject, named: Iterable[tuple[Key, str, bool]]) -> Found:
    for key, name, folder in named:  # path of the key, file name, whether it is a folder
        if message := _unusable(subject.resolve(name), folder=folder):
            yield key, message


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
