"""A model directory as it shall be, staged whole beside the root and put in place by one rename.

Triton takes every directory in a repository root for a model and parses names such as ``2.tmp`` as versions, so
nothing unfinished may ever be seen below the root. A model directory is therefore staged in ``<root>.state/staging``
(existing versions as hard links) and exchanged with the live one by renameat2(RENAME_EXCHANGE): configuration, labels,
warmup data, the new version and the removal of old ones become visible together, or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.repository.versions import is_own, state_dir

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_PREVIOUS = ".previous"


def swap(root: Path, model_name: str, staged: Path) -> None:
    """Put ``staged`` where the model's directory is, in one step where the file system can; the old one is deleted."""
    live = root / model_name
    if not live.exists():
        _rename(staged, live)
    elif _exchange(staged, live):
        files.fsync_directory(live.parent)
        files.remove_tree(staged)
    else:  # a filesystem without RENAME_EXCHANGE: recover() undoes a death between the two renames
        previous = staged.with_name(f"{live.name}{_PREVIOUS}")
        _rename(live, previous)
        _rename(staged, live)
        files.remove_tree(previous)


def staging(root: Path, model_name: str) -> Path:
    """An empty place for a model's directory, on the root's file system and out of every server's sight."""
    staged = state_dir(root) / "staging" / model_name
    files.remove_tree(staged)
    staged.parent.mkdir(parents=True, exist_ok=True)
    return staged


def assemble(
    target: Path, *, standing: Path, without: Collection[int], own: Mapping[str, bytes], added: Mapping[str, Path]
) -> None:
    """Write a model directory as it shall be.

    Args:
        target: does not exist yet.
        standing: the directory whose content it takes over, as hard links; may be absent.
        without: versions of ``standing`` that it does not take.
        own: the configuration, labels and warmup data, in the place of those in ``standing``.
        added: version directories to be linked in, by name.
    """
    target.mkdir(parents=True)
    gone = {str(number) for number in without}
    for item in sorted(standing.iterdir()) if standing.is_dir() else ():
        if item.name not in gone and not is_own(item.name):
            copy_tree(item, target / item.name, _link, follow=False)
    for name, folder in added.items():
        copy_tree(folder, target / name, _link, follow=False)
    for relative, data in own.items():
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def recover(root: Path) -> None:
    """Clear what a death left in staging; put a moved-away model directory back. The caller holds the global lock."""
    folder = state_dir(root) / "staging"
    for item in sorted(folder.iterdir()) if folder.is_dir() else ():
        live = root / item.name.removesuffix(_PREVIOUS)
        if item.name.endswith(_PREVIOUS) and not live.exists():
            _rename(item, live)
        else:
            files.remove_tree(item)


def copy_tree(source: Path, target: Path, copy: Callable[[Path, Path], object], *, follow: bool = True) -> None:
    """Copy a file by ``copy``, or a folder with all in it; where not to ``follow`` them, links stay links.

    shutil.copytree gathers what goes wrong into an error without a number: a full disk would not be told as one.
    """
    if source.is_symlink() and not follow:
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()
        for item in sorted(source.iterdir()):
            copy_tree(item, target / item.name, copy, follow=follow)
        shutil.copystat(source, target)
    else:
        copy(source, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(source, target)


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
