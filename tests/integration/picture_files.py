"""Image files of every kind that a program may meet, and some that it must refuse."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_ORIENTATION = 0x0112
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Waves and noise, uint8 [height, width, channels]."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 80 * np.sin(x / 7 + band) + 50 * np.cos(y / 5 - band) for band in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, channels))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def lossless(folder: Path) -> None:
    """PNG and lossless WebP: colours, greys, palettes, alpha, 1 and 16 bits, turned, of several sizes."""
    picture = Image.fromarray(pixels(61, 83))
    picture.save(folder / "rgb.png")
    picture.save(folder / "rgb.webp", lossless=True)
    picture.quantize(64).save(folder / "palette.png")
    picture.quantize(64).save(folder / "palette_transparent.png", transparency=3)
    gray = Image.fromarray(pixels(61, 83, 1)[..., 0])
    gray.save(folder / "gray.png")
    gray.convert("1").save(folder / "one_bit.png")
    for mode in ("LA", "RGBA"):
        alpha = Image.fromarray(pixels(40, 30, len(mode)), mode)
        alpha.save(folder / f"{mode}.png")
        alpha.save(folder / f"{mode}.webp", lossless=True)
    for name, channels, kind in (("gray16", 1, 0), ("gray_alpha16", 2, 4), ("rgb16", 3, 2), ("rgba16", 4, 6)):
        values = np.random.default_rng(1).integers(0, 65536, (20, 30, channels))
        (folder / f"{name}.png").write_bytes(png(values, depth=16, kind=kind))
    for height, width in ((1, 1), (2, 50), (33, 31), (40, 200), (200, 40), (100, 30), (224, 224), (300, 33)):
        Image.fromarray(pixels(height, width)).save(folder / f"size_{height}x{width}.png")
    turned(picture, folder, "png")
    turned(picture, folder, "webp", lossless=True)
    damaged_exif(picture, folder, "png")
    damaged_exif(picture, folder, "webp", lossless=True)
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", _XMP)
    picture.save(folder / "xmp.png", pnginfo=info)


def lossy(folder: Path) -> None:
    """JPEG (baseline, progressive, restarts, every subsampling, grey, turned) and lossy WebP."""
    picture = Image.fromarray(pixels(61, 83))
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        picture.save(folder / f"rgb_{subsampling.replace(':', '')}.jpg", subsampling=subsampling, quality=90)
    picture.save(folder / "progressive.jpg", progressive=True)
    picture.save(folder / "restarts.jpg", restart_marker_rows=1)
    picture.convert("L").save(folder / "gray.jpg")
    picture.save(folder / "xmp.jpg", xmp=_XMP.encode())
    picture.save(folder / "rgb.webp")
    turned(picture, folder, "jpg")
    damaged_exif(picture, folder, "jpg")
    (folder / "scans_100.jpg").write_bytes(scans(picture, 100))
    (folder / "bytes_behind.jpg").write_bytes((folder / "progressive.jpg").read_bytes() + b"and more")


def turned(picture: Image.Image, folder: Path, suffix: str, **how: bool) -> None:
    """One file for each of EXIF's eight orientations."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        picture.save(folder / f"turned{orientation}.{suffix}", exif=exif, **how)


def damaged_exif(picture: Image.Image, folder: Path, suffix: str, **how: bool) -> None:
    """EXIF that Pillow reads in part or not at all, around an orientation: bytes altered, and cut."""
    exif = Image.Exif()
    exif[_ORIENTATION], exif[0x010F], exif[0x0131] = 6, "the maker of it", "the program"
    block = exif.tobytes()
    blocks = [block[: len(block) * part // 8] for part in range(2, 8)]
    for number in range(60):
        altered, random = bytearray(block), np.random.default_rng(number)
        altered[random.integers(6, len(block))] = random.choice([0, 1, 3, 4, 5, 7, 42, 255])
        blocks.append(bytes(altered))
    for number, one in enumerate(blocks):
        picture.save(folder / f"damaged_exif{number}.{suffix}", exif=one, **how)


def scans(picture: Image.Image, count: int) -> bytes:
    """A progressive JPEG whose last scan comes as often as to make ``count`` of them."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last, have = data.rindex(b"\xff\xda"), data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - have) + data[-2:]


def refused(folder: Path) -> None:
    """Damaged, truncated, empty, of other formats, and what costs far more than its bytes: each in its own way."""
    picture = Image.fromarray(pixels(61, 83))
    for suffix in ("png", "jpg", "webp"):
        picture.save(folder / f"whole.{suffix}")
        whole = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"whole.{suffix}").unlink()
        (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
        (folder / f"head_only.{suffix}").write_bytes(whole[:20])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture, but words\n" * 9)
    picture.save(folder / "gif.gif")
    (folder / "gif.gif").rename(folder / "gif.png")
    (folder / "bomb.png").write_bytes(png(np.zeros((1, 1, 3)), depth=8, kind=2, size=(60_000, 60_000)))
    (folder / "scans.jpg").write_bytes(scans(picture, 101))


def too_large(folder: Path) -> None:
    """Of more than a million pixels: by themselves, and once their shorter side is resized to 40."""
    for name, height, width in (("wide", 1001, 1000), ("strip", 1, 700), ("upright_strip", 20_000, 1)):
        (folder / f"{name}.png").write_bytes(png(np.zeros((height, width, 3)), depth=8, kind=2))


def png(values: np.ndarray, *, depth: int, kind: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of any depth and colour type, which need not be what its header says: ``size`` as (height, width)."""
    height, width = size or values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
