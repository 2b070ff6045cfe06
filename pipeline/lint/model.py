"""What lint rules work on: one model directory, read once and safely, and the finding they report."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.base import printing
from pipeline.base.triton_facts import BACKENDS
from pipeline.machine.target import Limits
from pipeline.repository.manifest import read_manifest

CONFIG_NAME = "config.pbtxt"
SKIPPED_DIRECTORIES = ("configs", "warmup", "initial_state")  # core, VersionsToLoad: never read as versions
INT64_MAX = 2**63 - 1
# A config of hundreds of tensors has tens of kilobytes; the bound keeps a hostile one from filling memory.
MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in a repository that Triton refuses, or serves in a way its owner would not expect.

    Attributes:
        path: file or directory, relative to the repository root; with ``:line:column`` where a line is meant.
        rule: stable identifier, kebab-case.
        severity: ``error``: not loaded, or served wrongly; ``warning``: loaded, with a risk.
    """

    path: str
    rule: str
    severity: Literal["error", "warning"]
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where findings are: a path as ``Finding`` has it."""

    path: str

    def __str__(self) -> str:
        return self.path

    def error(self, rule: str, reason: str, fix: str) -> Finding:
        """A finding of severity ``error`` here."""
        return Finding(self.path, rule, "error", reason, fix)

    def warning(self, rule: str, reason: str, fix: str) -> Finding:
        """A finding of severity ``warning`` here."""
        return Finding(self.path, rule, "warning", reason, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One directory of the repository root.

    Attributes:
        config: its ModelConfig message, or None where there is none that parses.
        versions: version number -> its directory, as Triton reads the names; smallest first.
        others: all models of the repository by name, this one included.
    """

    root: Path
    path: Path
    config: Any
    versions: Mapping[int, Path]
    target: Limits
    others: Mapping[str, Model] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the directory, which is the model's."""
        return self.path.name

    def where(self, path: Path) -> str:
        """``path`` relative to the repository root, always printable."""
        return shown(self.root, path)

    def at(self, path: Path) -> Place:
        """A file or directory of the model, for findings."""
        return Place(self.where(path))

    def error(self, rule: str, reason: str, fix: str) -> Finding:
        """An error in the configuration."""
        return self.at(self.path / CONFIG_NAME).error(rule, reason, fix)

    def warning(self, rule: str, reason: str, fix: str) -> Finding:
        """A warning of the configuration."""
        return self.at(self.path / CONFIG_NAME).warning(rule, reason, fix)

    @property
    def batched(self) -> bool:
        """Whether the tensors have a batch dimension that ``dims`` leave out."""
        return bool(self.config.max_batch_size > 0)

    @property
    def is_ensemble(self) -> bool:
        """Whether the configuration is an ensemble's."""
        config = self.config
        return config is not None and (config.platform == "ensemble" or bool(config.HasField("ensemble_scheduling")))

    @property
    def backend(self) -> str:
        """The backend Triton would use: configured, else inferred as its core does; empty when it cannot tell."""
        config = self.config
        if config.backend or self.is_ensemble:
            return str(config.backend)
        for backend in _INFERRED:
            by_platform = config.platform and config.platform in backend.files
            if by_platform or config.default_model_filename in backend.files.values():
                return backend.name
        return "" if config.platform or config.default_model_filename else self._backend_by_files()

    def _backend_by_files(self) -> str:
        # Core looks into the version directory whose name sorts first.
        first = min(self.versions.values(), key=lambda path: path.name, default=None)
        present = {item.name for item in children(first)} if first else set()
        for backend in _INFERRED:
            if present & set(backend.files.values()) - {AOTI_FILE}:
                return backend.name
        return self.name.partition(".")[2]  # last resort of the core: a model named model.<backend>

    @property
    def filename(self) -> str:
        """Name of the file each version directory must hold; empty where the backend has no such rule."""
        config, backend = self.config, BACKENDS.get(self.backend)
        if config.default_model_filename:
            return str(config.default_model_filename)
        if backend is None or (backend.name == "pytorch" and config.runtime == "model.py"):
            return ""
        return backend.files.get(config.platform, "" if backend.name == "tensorflow" else backend.file_name)

    def files(self, version: Path, inside: str = "") -> list[Path]:
        """The plain files that the backend may open in a version; in directories of such a name, ``inside`` them."""
        names = sorted({self.filename, *self.config.cc_model_filenames.values()})
        paths = [path for name in names if (path := below(version, name)) is not None]
        paths = [path / inside if inside and path.is_dir() else path for path in paths]
        return [path for path in paths if is_regular(path)]

    def manifest(self, version: int) -> Mapping[str, Any]:
        """What this tool wrote down of a version, beside the repository; empty for one it did not make."""
        root = self.root.resolve()
        return (read_manifest(root, self.name, version) if root.name else None) or {}

    @property
    def fed_inputs(self) -> set[str]:
        """Names of all inputs a backend is given: the client's, the sequence batcher's, and those made per batch."""
        sequence = self.config.sequence_batching
        names = {item.name for item in (*self.config.input, *sequence.control_input)}
        names |= {item.input_name for item in sequence.state}
        return names | {name for item in self.config.batch_input for name in item.target_name}

    def shape(self, item: Any) -> list[int]:
        """The full shape of a configured tensor as the backend sees it."""
        return [-1] * self.batched + model_dims(item)


Findings = Iterator[Finding]
Rule = Callable[[Model], Findings]


def shown(root: Path, path: Path) -> str:
    """``path`` relative to ``root``, in text that any terminal takes."""
    relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return printable(relative)


def printable(text: str) -> str:
    """Printable text, shortened past 200 characters."""
    clean = printing.printable(text)
    return clean if len(clean) <= 200 else f"{clean[:199]}…"


def run(rules: Iterable[Rule], model: Model) -> Findings:
    """All findings of the rules; what cannot be read is a finding too."""
    for rule in rules:
        try:
            yield from rule(model)
        except OSError as problem:
            yield unreadable(model.root, model.path, problem)


def unreadable(root: Path, path: Path, problem: OSError) -> Finding:
    """The finding for a file or directory the system would not give."""
    at = Path(problem.filename) if isinstance(problem.filename, str) else path
    reason = f"it cannot be read: {problem.strerror or problem}."
    return Place(shown(root, at)).error("unreadable", reason, "give read permission (chmod a+rX), or remove it")


def children(path: Path) -> list[Path]:
    """Entries of a directory, sorted; empty when it is no directory.

    Raises:
        OSError: not readable.
    """
    return sorted(path.iterdir()) if path.is_dir() else []


def is_regular(path: Path) -> bool:
    """Whether it is a plain file (through links): opening a pipe or device could block for ever.

    Raises:
        OSError: its directory is not readable.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def below(base: Path, relative: str) -> Path | None:
    """``base / relative``, or None when it is absolute, climbs out by ``..`` or cannot be a file's name."""
    parts = relative.split("/")
    if "\0" in relative or relative.startswith("/") or max(len(part.encode()) for part in parts) > 255:
        return None
    joined = Path(os.path.normpath(base / relative))
    return joined if joined.is_relative_to(base) and joined != base else None


def read_text(path: Path) -> str | None:
    """A small text file; None when it is no plain file or longer than ``MAX_TEXT_BYTES``.

    Raises:
        OSError: not readable.
    """
    if not is_regular(path):
        return None
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT_BYTES + 1)
    return data.decode(errors="replace") if len(data) <= MAX_TEXT_BYTES else None


def version_number(name: str) -> int | None:
    """The version Triton takes a directory name for, or None if it ignores it.

    It calls ``stoll``, which reads the leading digits and drops the rest: ``2.tmp`` is version 2.
    """
    if name in SKIPPED_DIRECTORIES or (len(name) > 1 and name.startswith("0")):
        return None
    match = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", name)
    # Python refuses to convert thousands of digits; a name has at most 255 bytes.
    return int(match[1]) if match else None


def version_directories(path: Path) -> dict[int, Path]:
    """Version number -> directory for all that Triton would take as versions, smallest first.

    Raises:
        OSError: not readable.
    """
    found: dict[int, Path] = {}
    for item in children(path):
        number = version_number(item.name)
        if number is not None and abs(number) <= INT64_MAX and item.is_dir():
            found.setdefault(number, item)
    return dict(sorted(found.items()))


def enum_name(message: Any, name: str) -> str:
    """Name of an enum field's value, ``TYPE_FP32`` for example; the number where it has none."""
    number = getattr(message, name)
    value = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number.get(number)
    return str(value.name if value else number)


RTX_BACKEND = "tensorrt_rtx"
TENSORFLOW_FILES = BACKENDS["tensorflow"].files
AOTI_PLATFORM, AOTI_SINCE = "torch_aoti", "26.03"
AOTI_FILE = BACKENDS["pytorch"].files[AOTI_PLATFORM]
_INFERRED = tuple(backend for backend in BACKENDS.values() if backend.inferred)
# Backends whose library checks the configured tensors against the file, and so need both inputs and outputs.
CHECKED_BACKENDS = ("onnxruntime", "pytorch", "tensorrt")


def model_dims(item: Any) -> list[int]:
    """A configured tensor's dims as the backend sees them, without the batch dimension."""
    return list(item.reshape.shape if item.HasField("reshape") else item.dims)


def dims_text(dims: Iterable[int]) -> str:
    """``[3, 224, 224]``."""
    return f"[{', '.join(str(dim) for dim in dims)}]"
