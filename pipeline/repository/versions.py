"""Version numbers and contents: what stands in a model directory, and what shall be put there.

``<root>.state`` beside a root holds this tool's own records of it:

    lock                            one swap at a time
    locks/<model>                   one build of a model at a time, from its candidate to its publication
    manifests/<model>/<N>.json      what version N is and how it was proven
    golden/<sha256>.npz             the golden samples a version was judged by
    candidates/<run>/               what a build emitted, until it is proven
    staging/                        model directories about to be swapped
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.values import RepositoryEntry

LOCK_TIMEOUT_S = 3600.0  # a build holds its models' locks while it proves them
_SWAP_TIMEOUT_S = 900.0
CONFIG = "config.pbtxt"

Waiting = Callable[[str], None]
"""Told who holds a lock that is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model to be published.

    Attributes:
        model_name: its directory in the root.
        file_name: the model file's name in the version directory (``model.onnx``); empty where the artifact is a
            directory whose content is the version directory's.
        artifact: the file, or directory, to be copied there.
        beside: files, and folders, that go next to it, by their paths there.
        identity: what decides the artifact where equal inputs do not give equal bytes (engines): the newest version
            with the same one is the same version. Empty where bytes decide.
        model_files: bytes of config.pbtxt and of the files beside it, by relative path; none for what is not Triton's.
        golden: samples.npz the version was judged by.
        manifest: everything known about it; hashes are added where it is put into a candidate.
    """

    model_name: str
    file_name: str
    artifact: Path
    model_files: Mapping[str, bytes]
    golden: Path
    manifest: Mapping[str, Any]
    beside: Mapping[str, Path] = field(default_factory=dict)
    identity: str = ""

    @property
    def parts(self) -> dict[str, Path]:
        """Files and folders of the version directory, by their paths there."""
        return {self.file_name: self.artifact, **self.beside}

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that the version directory will hold."""
        found: dict[str, str] = {}
        for name, path in self.parts.items():
            if path.is_file():
                found[name] = files.sha256_file(path)
            else:
                folder = f"{name}/" if name else ""
                found |= {f"{folder}{part}": digest for part, digest in files.tree_digests(path).items()}
        return found


def state_dir(root: Path) -> Path:
    """Where this tool keeps its own records of a repository: beside it, never inside."""
    return root.with_name(root.name + ".state")


def global_lock(root: Path) -> Path:
    """Held while anything in a root, or a record of it, is changed."""
    return state_dir(root) / "lock"


def changing(root: Path, waiting: Waiting = lambda holder: None) -> contextlib.AbstractContextManager[None]:
    """Hold a root's global lock; a MissingError where it is held by another for too long."""
    return files.locked(global_lock(root), _SWAP_TIMEOUT_S, waiting)


def version_numbers(model_dir: Path) -> list[int]:
    """Plain version directories (``1``, ``2``, …), ascending."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(item.name) for item in model_dir.iterdir() if re.fullmatch(r"[1-9]\d{0,17}", item.name) and item.is_dir()
    )


def newest(root: Path, model_name: str) -> RepositoryEntry | None:
    """The newest version that stands there, or None."""
    numbers = version_numbers(root / model_name)
    return RepositoryEntry(root=root, model_name=model_name, version=numbers[-1], created=False) if numbers else None


def own_files(model_dir: Path) -> dict[str, bytes]:
    """Files of a model directory that this tool writes: the configuration, labels and warmup data."""
    tops = [item for item in model_dir.iterdir() if is_own(item.name)] if model_dir.is_dir() else []
    found = [item for top in tops for item in (top, *top.rglob("*")) if item.is_file()]
    return {item.relative_to(model_dir).as_posix(): item.read_bytes() for item in found}


def is_own(name: str) -> bool:
    """Whether a name in a model directory is one that this tool writes, besides versions."""
    return name in {CONFIG, "warmup"} or name.endswith("labels.txt")
