"""Version directories: written beside the repository, made durable, and put in place by one rename.

Triton takes every directory in a repository root for a model and parses names such as ``2.tmp`` as versions, so
nothing unfinished may ever be seen below the root. A model directory is therefore staged whole in
``<root>.state/staging`` (existing versions as hard links) and exchanged with the live one by
renameat2(RENAME_EXCHANGE): configuration, labels, warmup data, the new version and the removal of old ones become
visible together, or not at all.

``<root>.state`` beside the root holds:

    lock                            one build at a time
    manifests/<model>/<N>.json      what version N is and how it was proven
    golden/<sha256>.npz             the golden samples a version was judged by
    staging/                        model directories being written
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.base.values import RepositoryEntry, SmokeCheck

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
LOCK_TIMEOUT_S = 900.0
_LEFT_BEHIND = {"libtorch": "build/"}
"""By format, the folder that a version's use leaves in it: where users have CMake work.

That of all other formats is the bytecode which Triton's Python stub leaves beside a ``model.py`` (core 2.51).
"""
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


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
        manifest: everything known about it; hashes are added here.
    """

    model_name: str
    file_name: str
    artifact: Path
    model_files: Mapping[str, bytes]
    golden: Path
    manifest: Mapping[str, Any]
    beside: Mapping[str, Path] = field(default_factory=dict)
    identity: str = ""


def state_dir(root: Path) -> Path:
    """Where this tool keeps its own records of a repository: beside it, never inside."""
    return root.with_name(root.name + ".state")


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


def read_manifest(root: Path, model_name: str, version: int) -> dict[str, Any] | None:
    """The manifest of a version this tool wrote, or None."""
    path = state_dir(root) / "manifests" / model_name / f"{version}.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def golden_path(root: Path, manifest: Mapping[str, Any]) -> Path:
    """The golden samples a version was judged by."""
    return state_dir(root) / "golden" / f"{manifest['golden_sha256']}.npz"


def publish(
    root: Path, version: Version, *, retain: int | None, waiting: Callable[[str], None] = lambda holder: None
) -> RepositoryEntry:
    """Put a version into the repository as the next integer, unless the newest one is the same already.

    Whatever moment the process dies at, the model directory is as it was or holds the new version whole.

    Args:
        root: repository root; created when absent.
        version: what to publish.
        retain: keep this many versions written by this tool; None keeps all. Foreign versions are never removed.
        waiting: told who holds the lock while another build publishes.

    Returns:
        The version now newest; ``created`` is False when nothing had to change in its files.

    Raises:
        StageError: the model directory exists and was not written by this tool.
        MissingError: disk full, not writable, or the lock is held for too long.
    """
    state = state_dir(root)
    with files.disk_errors(root, f"repository[{version.model_name}]"):
        root.mkdir(parents=True, exist_ok=True)
        with files.locked(state / "lock", LOCK_TIMEOUT_S, waiting):
            _recover(root, state)
            return _publish(root, state, version, retain)


def _publish(root: Path, state: Path, version: Version, retain: int | None) -> RepositoryEntry:
    live = root / version.model_name
    existing = version_numbers(live)
    _refuse_foreign(root, live, version.model_name)
    digests = _content_digests(version)
    newest = existing[-1] if existing else 0
    manifest = read_manifest(root, version.model_name, newest)
    damage = corruption(live / str(newest), manifest)
    same = manifest is not None and _is_same(version, digests, manifest) and not damage
    if same and manifest is not None and manifest["files"] != digests:  # the files that stand there stay, as recorded
        digests = manifest["files"]
        kept = {name: manifest[name] for name in ("sha256", "size_bytes", "properties")}
        version = replace(version, manifest={**version.manifest, **kept})
    notes = [f"{damage}; a new version replaces it"] if damage else []
    number = newest if same else newest + 1
    doomed = _doomed(root, version.model_name, existing if same else [*existing, number], retain)
    config_same = live.is_dir() and _own_files(live) == dict(version.model_files)
    if not (same and config_same):
        _write_records(root, state, version, number, digests)
    if not (same and config_same and not doomed):
        staged = _stage(state, live, version, None if same else number, doomed)
        _swap(staged, live, state)
        for old in doomed:
            (state / "manifests" / version.model_name / f"{old}.json").unlink(missing_ok=True)
    if same and not config_same:
        notes.append(f"version {number} is unchanged; its configuration was updated")
    notes += [f"version {old} was removed (retain: {retain})" for old in doomed]
    return RepositoryEntry(
        root=root, model_name=version.model_name, version=number, created=not same, notes=tuple(notes)
    )


def _refuse_foreign(root: Path, live: Path, model_name: str) -> None:
    ours = (state_dir(root) / "manifests" / model_name).is_dir()
    if live.exists() and not ours:
        raise StageError(
            f"repository[{model_name}]: the model directory exists and was not written by this tool",
            where=str(live),
            hint=f"move it away, choose another `name`, or restore {state_dir(root)} if it was lost",
        )


def _content_digests(version: Version) -> dict[str, str]:
    parts = {version.file_name: version.artifact, **version.beside}
    return {name: digest for part, path in parts.items() for name, digest in _digests(part, path).items()}


def _digests(name: str, path: Path) -> dict[str, str]:
    if path.is_file():
        return {name: files.sha256_file(path)}
    folder = f"{name}/" if name else ""
    return {f"{folder}{part}": digest for part, digest in files.tree_digests(path).items()}


def _is_same(version: Version, digests: Mapping[str, str], manifest: Mapping[str, Any]) -> bool:
    recorded = manifest.get("properties")
    if version.identity and isinstance(recorded, dict) and recorded.get("identity") == version.identity:
        return True
    return bool(manifest.get("files") == digests)


def corruption(directory: Path, manifest: Mapping[str, Any] | None) -> str:
    """Say how a version directory differs from its manifest; empty when it does not, or when either is absent.

    What the use of a version leaves in it is no difference.
    """
    if manifest is None or not directory.is_dir():
        return ""
    left = _LEFT_BEHIND.get(str(manifest.get("format")), "__pycache__/")
    found = files.tree_digests(directory)
    actual = {name: digest for name, digest in found.items() if not name.startswith(left)}
    expected = manifest.get("files", {})
    wrong = sorted(name for name in actual.keys() | expected.keys() if actual.get(name) != expected.get(name))
    return f"version {directory.name} no longer matches its manifest ({', '.join(wrong[:3])})" if wrong else ""


def manifest_check(entry: RepositoryEntry) -> SmokeCheck:
    """Whether the files of a version that this tool wrote are those that it proved."""
    manifest = read_manifest(entry.root, entry.model_name, entry.version)
    damage = corruption(entry.version_dir, manifest) if manifest else "its manifest is lost"
    return SmokeCheck(name="manifest", protocol="-", outcome="failed" if damage else "passed", detail=damage)


def _doomed(root: Path, model_name: str, numbers: list[int], retain: int | None) -> list[int]:
    if retain is None:
        return []
    ours = [
        number
        for number in numbers[:-1]
        if (manifest := read_manifest(root, model_name, number)) is not None
        and not corruption(root / model_name / str(number), manifest)
    ]
    return ours[: max(0, len(ours) + 1 - retain)]


def _own_files(live: Path) -> dict[str, bytes]:
    """Files of a model directory that this tool writes: the configuration, labels and warmup data."""
    tops = [item for item in live.iterdir() if _is_own(item.name)]
    found = [item for top in tops for item in (top, *top.rglob("*")) if item.is_file()]
    return {item.relative_to(live).as_posix(): item.read_bytes() for item in found}


def _is_own(name: str) -> bool:
    return name in {"config.pbtxt", "warmup"} or name.endswith("labels.txt")


def _write_records(root: Path, state: Path, version: Version, number: int, digests: Mapping[str, str]) -> None:
    golden_sha256 = files.sha256_file(version.golden)
    config = version.model_files.get("config.pbtxt")
    record = {
        "size_bytes": files.size_bytes(version.artifact),
        **version.manifest,
        "model_name": version.model_name,
        "version": number,
        "files": dict(digests),
        **({"config_sha256": files.sha256_bytes(config)} if config is not None else {}),
        "golden_sha256": golden_sha256,
    }
    golden = state / "golden" / f"{golden_sha256}.npz"
    if not golden.is_file():
        files.write_atomic(golden, version.golden.read_bytes())
    path = state / "manifests" / version.model_name / f"{number}.json"
    files.write_atomic(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _stage(state: Path, live: Path, version: Version, number: int | None, doomed: list[int]) -> Path:
    """Write the model directory as it shall be; what it had already is linked, not copied."""
    staged = state / "staging" / version.model_name
    files.remove_tree(staged)
    staged.mkdir(parents=True)
    if live.is_dir():
        gone = {str(old) for old in doomed}
        for item in sorted(live.iterdir()):
            if item.name not in gone and not _is_own(item.name):
                _link(item, staged / item.name)
    for relative, data in version.model_files.items():
        target = staged / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if number is not None:
        folder = staged / str(number)
        if version.file_name:
            folder.mkdir()
        _copy(version.artifact, folder / version.file_name)
        for name, path in version.beside.items():
            beside = folder / name
            beside.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, beside)
    files.fsync_tree(staged)
    return staged


def _link(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    elif source.is_symlink():
        target.symlink_to(source.readlink())
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(source, target)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(source, target)


def _swap(staged: Path, live: Path, state: Path) -> None:
    """Put ``staged`` where ``live`` is, in one step where the filesystem can; the old directory is then deleted."""
    if not live.exists():
        _rename(staged, live)
    elif _exchange(staged, live):
        files.fsync_directory(live.parent)
        files.remove_tree(staged)
    else:  # a filesystem without RENAME_EXCHANGE: _recover() undoes a death between the two renames
        previous = state / "staging" / f"{live.name}.previous"
        _rename(live, previous)
        _rename(staged, live)
        files.remove_tree(previous)


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise StageError(
            "repository: the root is a mount point, so nothing can be renamed into it",
            where=str(target.parent),
            hint="use a folder inside that mount as --repository",
        ) from error
    files.fsync_directory(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the filesystem or kernel has no such thing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    result = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _recover(root: Path, state: Path) -> None:
    """Clear what a killed build left in staging; put a moved-away model directory back."""
    staging = state / "staging"
    for item in staging.iterdir() if staging.is_dir() else ():
        if item.name.endswith(".previous") and not (root / item.name.removesuffix(".previous")).exists():
            _rename(item, root / item.name.removesuffix(".previous"))
        else:
            files.remove_tree(item)
