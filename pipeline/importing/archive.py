"""Unpacks a model archive that may be hostile: nothing in it is run, and nothing it says leads out of the folder.

A ``.mar`` is a zip file; ``torch-model-archiver --archive-format tgz`` (0.12) writes a gzipped tar with one folder
around it all. Every member is judged before the first byte is written. Links, devices, encrypted members, two members
of one name and names that leave the folder are refused rather than repaired: no archiver writes them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.base import files
from pipeline.base.errors import ConfigError
from pipeline.importing import zips

MAX_BYTES = 16 * 2**30
MAX_MEMBERS = 10_000  # files and folders
MAX_DEPTH = 32
MAX_HEADER_BYTES = 64 * 2**20  # of a tar, all together; each member has 512, and a few hundred for a long name
MAX_RATIO = 200  # weights hardly shrink; deflate ends at 1032
_RATIO_FROM_BYTES = 64 * 2**20  # below that, no ratio is a danger
_MAX_PART_BYTES = 255  # what a file name may have on Linux (NAME_MAX)
_MANIFEST = "MAR-INF/MANIFEST.json"
_BLOCK = 1 << 20

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError, NotImplementedError,
    RuntimeError, ValueError, OverflowError,
)  # fmt: skip
"""What the readers raise for damaged archives."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One file of an archive: its name as written, its size as told, and how to read it."""

    name: str
    size_bytes: int
    open: Callable[[], IO[bytes]]


def unpack(path: Path, target: Path) -> tuple[str, ...]:
    """Write every file of a ``.mar`` or ``.tar.gz`` below ``target``, an existing empty folder.

    Modes, times and owners of the archive are not taken over. The files' paths relative to ``target`` are sorted.

    Raises:
        ConfigError: no such file, no archive, damaged, or refused as unsafe.
        MissingError: the disk is full.
    """
    with _opened(path, target) as members:
        names = _without_top(_judged(path, members))
        with files.disk_errors(target, "import-mar"):
            for member, name in zip(members, names, strict=True):
                _write(path, member, target / name)
    return tuple(sorted(names))


@contextlib.contextmanager
def _opened(path: Path, scratch: Path) -> Iterator[list[_Member]]:
    """The files of an archive, told by how it starts, whatever its name."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except IsADirectoryError as error:
        raise ConfigError(
            "import-mar: a folder, not an archive",
            where=str(path),
            hint="torch-model-archiver writes a .mar without `--archive-format no-archive`; "
            "or zip what the folder holds: cd FOLDER && zip -r ../model.mar .",
        ) from error
    except OSError as error:
        raise ConfigError(
            "import-mar: cannot read the archive", found=str(error), where=str(path), hint="check the path and its mode"
        ) from error
    try:
        if start == b"PK\x03\x04":
            if zips.count(path) > MAX_MEMBERS:
                raise _too_many(path)
            with zipfile.ZipFile(path) as archive:
                yield _of_zip(path, archive)
        elif start[:2] == b"\x1f\x8b":
            with tempfile.TemporaryFile(dir=scratch.parent) as plain:
                _inflate(path, plain)
                bounded = _Bounded(path, plain.fileno())
                with tarfile.open(fileobj=bounded, mode="r:") as tar:
                    members = _of_tar(path, tar)
                    bounded.left = MAX_BYTES  # from here on content is read, whose sizes are judged
                    yield members
        else:
            found = f"starts with {start!r}; expected a .mar (zip) or a .tar.gz"
            hint = "torch-model-archiver writes both: --archive-format default, or tgz"
            raise ConfigError("import-mar: not a TorchServe archive", found=found, where=str(path), hint=hint)
    except _BROKEN as error:
        found = f"{type(error).__name__}: {error}"[:300]
        hint = "is the file whole? compare its size and checksum with where it came from"
        raise ConfigError("import-mar: the archive is damaged", found=found, where=str(path), hint=hint) from error


def _of_zip(path: Path, archive: zipfile.ZipFile) -> list[_Member]:
    members = []
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # a Unix mode, or 0 where another system packed it
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(path, info.orig_filename, "a link or a device")
        if info.flag_bits & 0x1:
            raise _refused(path, info.orig_filename, "encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(path, info.orig_filename, f"compressed by method {info.compress_type}, not deflate")
        # orig_filename: `filename` ends at the first NUL, which would hide what follows.
        if info.is_dir():
            _checked_name(path, info.orig_filename.rstrip("/"))
        else:
            members.append(_Member(info.orig_filename, info.file_size, partial(archive.open, info)))
    return members


def _inflate(path: Path, target: IO[bytes]) -> None:
    """Gunzip, so that a header in the tar cannot tell of more bytes than the limits let through."""
    limit = min(MAX_BYTES, max(_RATIO_FROM_BYTES, MAX_RATIO * path.stat().st_size))
    written = 0
    with gzip.open(path) as stream, files.disk_errors(path, "import-mar"):
        while block := stream.read(_BLOCK):
            written += len(block)
            if written > limit:
                raise _too_large(path, f"over {written} bytes from {path.stat().st_size}")
            target.write(block)
    target.seek(0)


class _Bounded(io.FileIO):
    """A tar's bytes, of which no more than ``left`` are read: tarfile takes a header into memory, however long."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(descriptor, closefd=False)
        self._path, self.left = path, MAX_HEADER_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise _too_large(self._path, f"headers of over {MAX_HEADER_BYTES} bytes")
        self.left -= size
        return super().read(size)


def _of_tar(path: Path, tar: tarfile.TarFile) -> list[_Member]:
    members: list[_Member] = []
    for info in tar:
        if len(members) > MAX_MEMBERS:
            break
        if info.isdir():
            _checked_name(path, info.name)
        elif not info.isreg() or info.issparse():
            raise _refused(path, info.name, "a link, a device or a sparse file")
        else:
            members.append(_Member(info.name, info.size, partial(_content, tar, info)))
    return members


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # a regular file
    return stream


def _judged(path: Path, members: Sequence[_Member]) -> list[str]:
    """The members' safe names, in order."""
    if len(members) > MAX_MEMBERS:
        raise _too_many(path)
    total, packed = sum(member.size_bytes for member in members), path.stat().st_size
    if total > MAX_BYTES or (total > _RATIO_FROM_BYTES and total > MAX_RATIO * packed):
        raise _too_large(path, f"{total} bytes from {packed}")
    names: dict[str, None] = {}
    for member in members:
        name = _checked_name(path, member.name)
        if name in names:
            raise _refused(path, member.name, "there twice")
        names[name] = None
    folders: set[str] = set()
    for name in names:
        for parent in Path(name).parents:
            folders.add(parent.as_posix())
            if parent.as_posix() in names:
                raise _refused(path, name, f"below {parent}, which is a file")
    if len(names) + len(folders) > MAX_MEMBERS + 1:  # the archive's own folder is one of them
        raise _too_many(path)
    return list(names)


def _without_top(names: list[str]) -> list[str]:
    """The names below the one folder that holds all, where that is not the manifest's own."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or _MANIFEST in names or any("/" not in name for name in names):
        return names
    return [name.partition("/")[2] for name in names]


def _checked_name(path: Path, name: str) -> str:
    """A member's name as a plain relative path; refused where it is none."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not name.isprintable():
        raise _refused(path, name, "a name with control characters, invisible signs or bytes that are no text")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _refused(path, name, "an absolute path")
    if "\\" in name:
        raise _refused(path, name, "a backslash in its name, which some systems take for a folder")
    if ".." in parts:
        raise _refused(path, name, "a path that leads out of the archive")
    if not parts or max(len(part.encode()) for part in parts) > _MAX_PART_BYTES or len(name) > 1024:
        raise _refused(path, name, "no usable file name")
    if len(parts) > MAX_DEPTH:
        raise _refused(path, name, f"over {MAX_DEPTH} folders deep")
    return "/".join(parts)


def _write(path: Path, member: _Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, target.open("xb") as written:
        shutil.copyfileobj(source, written, _BLOCK)
        if written.tell() != member.size_bytes:
            raise _refused(path, member.name, f"{written.tell()} bytes, where the archive tells {member.size_bytes}")


def _refused(path: Path, name: str, why: str) -> ConfigError:
    found = f"{name[:200]!r}: {why}"
    hint = "nothing was written; torch-model-archiver makes no such archive, so ask where this one comes from"
    return ConfigError("import-mar: the archive is refused as unsafe", found=found, where=str(path), hint=hint)


def _too_many(path: Path) -> ConfigError:
    return _too_large(path, f"over {MAX_MEMBERS} files and folders")


def _too_large(path: Path, found: str) -> ConfigError:
    return ConfigError(
        "import-mar: the archive unfolds to more than is safe",
        found=f"{found}; at most {MAX_BYTES // 2**30} GiB, {MAX_RATIO} times its own size "
        f"(from {_RATIO_FROM_BYTES // 2**20} MiB on) and {MAX_MEMBERS} files and folders",
        where=str(path),
        hint="nothing was written; weights that really compress so well can be packed with --archive-format zip-store",
    )
