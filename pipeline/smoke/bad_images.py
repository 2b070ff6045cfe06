"""What an image model must refuse, each made from an image it takes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

_PNG = b"\x89PNG\r\n\x1a\n"


def bad_images(good: bytes, max_pixels: int) -> Mapping[str, bytes]:
    """Bytes by what is wrong with them.

    Args:
        good: an image file that is accepted.
        max_pixels: larger images are refused.
    """
    return {
        "no bytes": b"",
        "text": b"<html>404 Not Found</html>",
        "a truncated image": good[: len(good) // 2],
        "an image of another format": _gif(),
        "an image of too many pixels": _huge(max_pixels),
    }


def _gif() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "GIF")
    return stream.getvalue()


def _huge(max_pixels: int) -> bytes:
    """A PNG file of a few bytes that says it has just too many pixels: nothing may be decoded to refuse it."""
    width = 2**15
    height = max_pixels // width + 1
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(64))) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
