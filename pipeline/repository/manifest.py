"""Manifests: what a version is and how it was proven; each belongs to one state of files, and changes with it.

A manifest that comes with new files is first written as ``<N>.json.next``, with the digests of the files it belongs to;
the files are swapped; then it becomes ``<N>.json``. Where a death left ``.next`` behind, the files that stand decide
which of the two counts, for every reader alike, and the next build finishes or discards it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.values import ProofLevel, RepositoryEntry, SmokeCheck
from pipeline.repository.versions import CONFIG, changing, own_files, state_dir, version_numbers

LEVELS: tuple[ProofLevel, ...] = ("none", "inspected", "served")

_LEFT_BEHIND = {"libtorch": "build/"}
"""By format, the folder that a version's use leaves in it: where users have CMake work.

That of all other formats is the bytecode which Triton's Python stub leaves beside a ``model.py`` (core 2.51).
"""
_PROVEN = ("files", "model_files", "golden_sha256", "serving")  # what a proof was of: where these are equal, it holds


def read_manifest(root: Path, model_name: str, version: int) -> dict[str, Any] | None:
    """The manifest of a version this tool wrote, or None; that of the files which stand there."""
    pending = _load(_next(root, model_name, version))
    if pending is not None and _stands(root, model_name, version, pending):
        found: dict[str, Any] = pending["manifest"]
        return found
    return _load(_path(root, model_name, version))


def golden_path(root: Path, manifest: Mapping[str, Any]) -> Path:
    """The golden samples a version was judged by."""
    return state_dir(root) / "golden" / f"{manifest['golden_sha256']}.npz"


def level_of(manifest: Mapping[str, Any]) -> ProofLevel:
    """How far a version was proven; versions of builds that did not record it count as not proven."""
    return next((level for level in LEVELS if level == manifest.get("proof")), "none")


def corruption(directory: Path, manifest: Mapping[str, Any] | None) -> str:
    """Say how a version directory differs from its manifest; empty when it does not, or when either is absent.

    What the use of a version leaves in it is no difference.
    """
    if manifest is None or not directory.is_dir():
        return ""
    left = left_behind(manifest)
    found = files.tree_digests(directory)
    actual = {name: digest for name, digest in found.items() if not name.startswith(left)}
    expected = manifest.get("files", {})
    wrong = sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name))
    return f"version {directory.name} no longer matches its manifest ({', '.join(wrong[:3])})" if wrong else ""


def left_behind(manifest: Mapping[str, Any]) -> str:
    """The folder that a version's use leaves in its directory."""
    return _LEFT_BEHIND.get(str(manifest.get("format")), "__pycache__/")


def manifest_check(entry: RepositoryEntry) -> SmokeCheck:
    """Whether the files of a version that this tool wrote are those that it proved."""
    manifest = read_manifest(entry.root, entry.model_name, entry.version)
    damage = corruption(entry.version_dir, manifest) if manifest else "its manifest is lost"
    return SmokeCheck(name="manifest", protocol="-", outcome="failed" if damage else "passed", detail=damage)


# ---- writing; the caller holds the global lock -----------------------------------------------------------------------


def text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written."""
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def write(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest whose files stand already; one atomic write."""
    files.write_atomic(_path(root, manifest["model_name"], manifest["version"]), text(manifest))


def prepare(root: Path, manifest: Mapping[str, Any], config: bytes | None) -> None:
    """Write the manifest of files that are about to be swapped in, with ``config`` as their config.pbtxt."""
    pending = {"config_sha256": files.sha256_bytes(config) if config is not None else None, "manifest": dict(manifest)}
    files.write_atomic(_next(root, manifest["model_name"], manifest["version"]), text(pending))


def settle(root: Path, model_name: str) -> None:
    """Finish every prepared manifest whose files stand, and discard the others: after a swap, and after a death."""
    folder = _folder(root, model_name)
    for path in sorted(folder.glob("*.json.next")):
        number = int(path.name.removesuffix(".json.next"))
        pending = _load(path)
        if pending is not None and _stands(root, model_name, number, pending):
            write(root, pending["manifest"])
        path.unlink()  # it counts no more, or never will
    for leftover in folder.glob(".*.json*"):  # of a write that a death cut off
        leftover.unlink()


def finish(root: Path, manifest: Mapping[str, Any]) -> None:
    """Make a prepared manifest the version's own, now that its files were swapped in."""
    write(root, manifest)
    _next(root, manifest["model_name"], manifest["version"]).unlink(missing_ok=True)


def forget(root: Path, model_name: str, version: int) -> None:
    """Drop the manifest of a version that was removed."""
    _path(root, model_name, version).unlink(missing_ok=True)


def raise_level(root: Path, model_name: str, version: int, level: ProofLevel) -> bool:
    """Record that a version was proven as far as ``level``, unless it was before; whether anything was written."""
    with changing(root):
        manifest = read_manifest(root, model_name, version)
        if manifest is None or LEVELS.index(level_of(manifest)) >= LEVELS.index(level):
            return False
        settle(root, model_name)
        write(root, {**manifest, "proof": level})
        return True


def with_level(manifest: Mapping[str, Any], level: ProofLevel, standing: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest with its proof level: the higher one where ``standing`` was proven of the same files and samples."""
    if standing is not None and all(standing.get(key) == manifest.get(key) for key in _PROVEN):
        level = max(level, level_of(standing), key=LEVELS.index)
    return {**manifest, "proof": level}


def has_records(root: Path, model_name: str) -> bool:
    """Whether this tool ever wrote a version of a model."""
    return any(_folder(root, model_name).glob("*.json*"))


def orphans(root: Path, model_name: str) -> list[int]:
    """Versions older than the newest one there, which have a manifest and no directory."""
    numbers = version_numbers(root / model_name)
    known = [int(path.stem) for path in _folder(root, model_name).glob("*.json") if path.stem.isdecimal()]
    return [number for number in sorted(known) if numbers and number < numbers[-1] and number not in numbers]


def _stands(root: Path, model_name: str, version: int, pending: Mapping[str, Any]) -> bool:
    """Whether the files a prepared manifest belongs to are those which stand."""
    manifest, model_dir = pending.get("manifest"), root / model_name
    if not isinstance(manifest, dict) or not (model_dir / str(version)).is_dir():
        return False
    expected = dict(manifest.get("model_files", {}))
    if pending.get("config_sha256") is not None:
        expected[CONFIG] = pending["config_sha256"]
    found = {name: files.sha256_bytes(data) for name, data in own_files(model_dir).items()}
    return found == expected and not corruption(model_dir / str(version), manifest)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _folder(root: Path, model_name: str) -> Path:
    return state_dir(root) / "manifests" / model_name


def _path(root: Path, model_name: str, version: int) -> Path:
    return _folder(root, model_name) / f"{version}.json"


def _next(root: Path, model_name: str, version: int) -> Path:
    return _folder(root, model_name) / f"{version}.json.next"
