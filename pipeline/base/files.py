"""Atomic writes, hashing and path safety: nothing half-written, nothing outside its root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, MissingError

LOCAL_PATH = r"^(?![A-Za-z][A-Za-z0-9+.-]*://)"
"""Pattern of a path: no URL. ``Path`` would make a folder ``s3:`` of one."""
_DISK_ERRORS = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        "no space left on the disk",
        "free space there, run `python -m pipeline cache gc`, or name another --work-dir or --repository",
    ),
    ((errno.EACCES, errno.EPERM, errno.EROFS), "not allowed to write", "check its owner and mode"),
    ((errno.EIO,), "the disk reported an error", "check the disk"),
)
"""Numbers of errors, what to call them, and what to try."""


@contextlib.contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn a full or failing disk, or a forbidden path, into a MissingError that says what to do.

    Args:
        path: file or directory being written.
        doing: the stage and action, for the message.
    """
    try:
        yield
    except OSError as error:
        for numbers, what, hint in _DISK_ERRORS:
            if error.errno in numbers:
                raise MissingError(f"{doing}: {what}", found=str(error), where=str(path), hint=hint) from error
        raise


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file under ``path``, keyed by POSIX path relative to it, sorted.

    A plain file gives one entry, keyed by its name.
    """
    if path.is_file():
        return {path.name: sha256_file(path)}
    files = sorted(item for item in path.rglob("*") if item.is_file())
    return {item.relative_to(path).as_posix(): sha256_file(item) for item in files}


def sha256_tree(path: Path) -> str:
    """One digest for a file or a directory: names and contents, not times or modes."""
    return sha256_file(path) if path.is_file() else digest_of(tree_digests(path))


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files under a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare spaces: one text per value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON value's canonical text."""
    return sha256_bytes(canonical_json(value).encode())


def fsync_directory(path: Path) -> None:
    """Make a directory's entries (creations, renames) durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make every file and directory under ``path`` durable, ``path`` itself last."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            with (Path(folder) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_directory(Path(folder))


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old bytes or the new, never a part."""
    content = data.encode() if isinstance(data, str) else data
    with disk_errors(path, "writing a file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)  # noqa: PTH101 - mkstemp's 0600 would hide it from other users of the machine
            os.replace(name, path)  # noqa: PTH105
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def inside(root: Path, relative: str) -> Path:
    """``root / relative``; a ConfigError where that leaves ``root`` by ``..``, an absolute path or a link."""
    candidate = (root / relative).resolve()
    if not candidate.is_relative_to(root.resolve()):
        raise ConfigError(
            "a path leaves its root", found=relative, where=str(root), hint="use a path below that folder"
        )
    return candidate


def remove_tree(path: Path) -> None:
    """Delete a directory or file if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (a file made for it, never deleted); the kernel drops it if the process dies.

    ``waiting`` is called once with the holder's description when the lock is not free.

    Raises:
        MissingError: still held by another process after ``timeout_s``.
    """
    with disk_errors(path, "taking a lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    with stream:
        deadline = time.monotonic() + timeout_s
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                if not told:
                    waiting(holder)
                    told = True
                if time.monotonic() > deadline:
                    raise MissingError(
                        "another build holds the lock",
                        found=f"{holder}, for over {timeout_s:.0f} s",
                        where=str(path),
                        hint="wait for it to end, or stop it, then run again",
                    ) from error
                time.sleep(0.1)
        with contextlib.suppress(OSError):  # who holds it is a courtesy to those who wait
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()}\n".encode())
        yield
