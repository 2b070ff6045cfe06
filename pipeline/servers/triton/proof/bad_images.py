"""What an image model must refuse, each made from an image it takes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

from pipeline.images.preprocessing import Preprocessing

_PNG = b"\x89PNG\r\n\x1a\n"


def bad_images(good: bytes, how: Preprocessing) -> Mapping[str, bytes]:
    """Bytes by what is wrong with them.

    Args:
        good: an image file that is accepted.
        how: images become the input; says what is too large.
    """
    bad = {
        "no bytes": b"",
        "text": b"<html>404 Not Found</html>",
        "a truncated image": good[: len(good) // 2],
        "an image of another format": _gif(),
        "an image of too many pixels": _huge(how.max_pixels),
    }
    if isinstance(how.resize, int):
        bad["a strip that becomes too many pixels"] = _strip(how.resize, how.max_pixels)
    return bad


def _gif() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "GIF")
    return stream.getvalue()


def _huge(max_pixels: int) -> bytes:
    """A PNG file of a few bytes that says it has just too many pixels: nothing may be decoded to refuse it."""
    width = 2**15
    return _png(width, max_pixels // width + 1, bytes(64))


def _strip(shorter: int, max_pixels: int) -> bytes:
    """A PNG file one pixel high, whole, that has just too many pixels once its height is ``shorter``."""
    width = max_pixels // shorter**2 + 1
    return _png(width, 1, bytes(1 + width))


def _png(width: int, height: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
