"""The list of a zip's members (its central directory), looked at before zipfile makes an object of each of them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

# APPNOTE 4.3.12, 4.3.16, 4.3.15 and 4.3.14; sizes without the comment that may end the file
_ENTRY = b"PK\x01\x02"
_END, _END_BYTES = b"PK\x05\x06", 22
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20
_END_64, _END_64_BYTES = b"PK\x06\x06", 56
_COMMENT_BYTES = 0xFFFF
_MAX_BYTES = 64 * 2**20  # of the list; far more than 30,000 members with names


def count(path: Path) -> int:
    """How many members a zip lists: at least as many as any reader of it finds.

    A list that does not end where the record of it starts is refused: readers look for it in two ways, and could then
    see different members. Nothing that packs models leaves such a gap.

    Raises:
        zipfile.BadZipFile: no zip, or one that can be read in two ways.
    """
    with path.open("rb") as stream:
        offset, size_bytes = _directory(stream)
        if size_bytes > _MAX_BYTES:
            raise zipfile.BadZipFile(f"a list of members of {size_bytes} bytes")
        stream.seek(offset)
        return stream.read(size_bytes).count(_ENTRY)


def _directory(stream: BinaryIO) -> tuple[int, int]:
    """Where the list of members starts, and its bytes."""
    start = max(0, stream.seek(0, io.SEEK_END) - _END_BYTES - _COMMENT_BYTES)
    stream.seek(start)
    tail = stream.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise zipfile.BadZipFile("no list of its members")
    size_bytes, offset, comment_bytes = struct.unpack_from("<LLH", tail, at + 12)
    if at + _END_BYTES + comment_bytes != len(tail):
        raise zipfile.BadZipFile("something follows the list of its members")
    end = start + at
    locator = _record(stream, end - _LOCATOR_BYTES, _LOCATOR, _LOCATOR_BYTES)
    if locator:
        end -= _LOCATOR_BYTES + _END_64_BYTES
        record = _record(stream, end, _END_64, _END_64_BYTES)
        if not record or struct.unpack_from("<Q", locator, 8) != (end,):
            raise zipfile.BadZipFile("its zip64 record is not where it should be")
        size_bytes, offset = struct.unpack_from("<QQ", record, 40)
    if offset + size_bytes != end:
        raise zipfile.BadZipFile("the list of its members is not where it should be")
    return offset, size_bytes


def _record(stream: BinaryIO, offset: int, start: bytes, size_bytes: int) -> bytes:
    """A record's bytes; empty where there is none."""
    if offset < 0:
        return b""
    stream.seek(offset)
    found = stream.read(size_bytes)
    return found if len(found) == size_bytes and found.startswith(start) else b""
