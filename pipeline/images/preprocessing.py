"""From the bytes of an image file to a model's input.

One file with numpy and Pillow as its only needs, because it is copied as it is into what is served: Triton's
preprocessing model and TorchServe's handler run this very code, on Python 3.10 and later. So training, golden samples
and serving cannot differ.

Resizing, cropping and normalising are those of torchvision's ``Resize``, ``CenterCrop``, ``ToTensor`` and ``Normalize``
on Pillow images, bit for bit.
"""

from __future__ import annotations

import io
import json
import re
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # Pillow is imported where it is used: a plan knows these settings and opens no image
    from PIL import Image

Array = npt.NDArray[Any]

MOST_PIXELS = 178_956_970
"""Pillow opens no larger image: the greatest ``max_pixels``."""

_MOST_SCANS = 100  # of a JPEG, each a pass over all its pixels; a progressive one usually has about ten
# what starts a segment of a JPEG: not the stuffed 0xff of pixels, nor a marker without a segment
_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_END, _SCAN = 0xD9, 0xDA

_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip

# what Pillow raises over damaged files (found by altering bytes, Pillow 13.0)
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, MemoryError,
    TypeError, struct.error, IndexError, KeyError, OverflowError,
)  # fmt: skip


class RefusedImage(ValueError):  # noqa: N818 - what it is, in the words of whoever sent it
    """The bytes are no image of an accepted format, are damaged, or too large to be safe."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes one sample of the input.

    Attributes:
        formats: accepted file formats, as ``jpeg``, ``png``, ``webp``; empty for all that Pillow reads.
        color: ``gray`` (ITU-R BT.601 luma, Pillow's mode L) or ``rgb``.
        resize: (height, width), the length of the shorter side, or None.
        crop: (height, width) cut from the centre after resizing, or None; a smaller image gets a black border.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``; all but nearest with antialias.
        scale: pixels of 0..255 are divided by it; not for a ``uint8`` input, which keeps them.
        mean: of scaled pixels, one number or one per channel.
        std: likewise.
        max_pixels: larger images are refused before they are decoded, and those that ``resize`` would make larger.
        dtype: numpy's name of the input's dtype.
        layout: ``NCHW``, ``NHWC``, or ``flat`` for one vector of all pixels in C, H, W order.
    """

    formats: tuple[str, ...]
    color: str
    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    interpolation: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_pixels: int
    dtype: str
    layout: str

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """The inverse of ``to_json``.

        Raises:
            ValueError: not JSON of these fields.
        """
        try:
            given: dict[str, Any] = json.loads(text)
            typed: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in given.items()}
            return cls(**typed)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no preprocessing settings: {error}") from error

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.color == "gray" else 3


def tensor(data: bytes, how: Preprocessing) -> Array:
    """One image file as one sample of the input, without the batch dimension.

    Raises:
        RefusedImage: see decoded and sized; or there is not enough memory for it.
    """
    try:
        return normalised(sized(decoded(data, how), how), how)
    except MemoryError as error:
        raise RefusedImage("there is not enough memory for it") from error


def of_pixels(pixels: Array, how: Preprocessing) -> Array:
    """The same for pixels at hand: uint8 ``[H, W, 1 or 3]``."""
    image = _image(pixels)
    return normalised(sized(image.convert(_mode(how)), how), how)


def decoded(data: bytes, how: Preprocessing) -> Image.Image:
    """The first frame of an image file, upright by its EXIF tag, of 8 bits per channel, in mode L or RGB.

    Raises:
        RefusedImage: empty, of another format, damaged, truncated, of more than ``max_pixels`` or of too many scans.
    """
    if not data:
        raise RefusedImage("no bytes; expected an image file")
    from PIL import Image, UnidentifiedImageError

    accepted = [name.upper() for name in how.formats] or None
    try:
        with Image.open(io.BytesIO(data), formats=accepted) as opened:
            if opened.width * opened.height > how.max_pixels:
                raise RefusedImage(f"{opened.width} x {opened.height} pixels; at most {how.max_pixels} are accepted")
            if data.startswith(b"\xff\xd8") and _scans(data) > _MOST_SCANS:
                raise RefusedImage(f"a JPEG of more than {_MOST_SCANS} scans")
            image = _upright(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # as Pillow makes colours of 16 bits
            elif image.mode in ("I", "F"):
                raise RefusedImage(f"pixels of mode {image.mode}; expected 8 or 16 bits per channel")
            image.info.pop("transparency", None)  # it is left out, and Pillow warns of some kinds of it
            return image.convert(_mode(how))
    except RefusedImage:
        raise
    except UnidentifiedImageError as error:
        named = ", ".join(accepted) if accepted else "a format that Pillow reads"
        raise RefusedImage(f"{len(data)} bytes that are no image in {named}") from error
    except Image.DecompressionBombError as error:  # before its size is known here
        raise RefusedImage(f"more than {MOST_PIXELS} pixels; at most {how.max_pixels} are accepted") from error
    except _DAMAGE as error:
        raise RefusedImage(f"damaged or truncated: {error}") from error


def _scans(data: bytes) -> int:
    """How many scans a JPEG has; counting ends where they are too many.

    The segments are followed to the end marker, as a decoder does, because 0xff 0xda may occur in metadata and in what
    follows the image (a phone's short film). In a scan's data it cannot: 0xff is stuffed with 0x00 there.
    """
    count, at = 0, 2
    while count <= _MOST_SCANS and (found := _SEGMENT.search(data, at)) and found[1][0] != _END:
        count += found[1][0] == _SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count


def _upright(image: Image.Image) -> Image.Image:
    """Turned by EXIF's orientation, or XMP's where that has none, as ImageOps.exif_transpose does.

    That one writes the whole EXIF block anew, which fails for readable images; here damaged EXIF counts as upright.
    """
    from PIL import Image

    image.load()  # metadata may lie behind the pixels
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001 - whatever Pillow finds in damaged EXIF, the pixels are sound
        turn = None
    return image.transpose(Image.Transpose[turn]) if turn else image


def _mode(how: Preprocessing) -> str:
    return "L" if how.color == "gray" else "RGB"


def sized(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Resized, then cropped (torchvision.transforms.functional ``resize``, ``center_crop``, 0.28).

    Raises:
        RefusedImage: a narrow image, of which resizing its shorter side would make more than ``max_pixels``.
    """
    if how.resize is not None:
        height, width = _resized(image.height, image.width, how.resize)
        if isinstance(how.resize, int) and height * width > how.max_pixels:
            raise RefusedImage(
                f"{image.width} x {image.height} pixels would be resized to {width} x {height}; "
                f"at most {how.max_pixels} are accepted"
            )
        if (image.height, image.width) != (height, width):
            from PIL import Image

            image = image.resize((width, height), Image.Resampling[how.interpolation.upper()])
    if how.crop is not None and (image.height, image.width) != how.crop:
        top, left = _margin(image.height, how.crop[0]), _margin(image.width, how.crop[1])
        image = image.crop((left, top, left + how.crop[1], top + how.crop[0]))
    return image


def _resized(height: int, width: int, resize: tuple[int, int] | int) -> tuple[int, int]:
    if not isinstance(resize, int):
        return resize
    shorter, longer = min(height, width), max(height, width)
    other = max(1, int(resize * longer / shorter))
    return (resize, other) if height <= width else (other, resize)


def _margin(size: int, wanted: int) -> int:
    """Where a centre crop starts; negative where a border is added."""
    return round((size - wanted) / 2.0) if size >= wanted else -((wanted - size) // 2)


def normalised(image: Image.Image, how: Preprocessing) -> Array:
    """Pixels scaled, normalised in float32 and laid out as the input."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if how.dtype != "uint8":
        scaled = pixels.astype(np.float32) / np.float32(how.scale)
        pixels = (scaled - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    if how.layout != "NHWC":
        pixels = pixels.transpose(2, 0, 1)
    if how.layout == "flat":
        pixels = pixels.reshape(-1)
    return np.ascontiguousarray(pixels, dtype=how.dtype)


def png(pixels: Array) -> bytes:
    """uint8 ``[H, W, 1 or 3]`` pixels as a PNG file."""
    stream = io.BytesIO()
    _image(pixels).save(stream, "PNG")
    return stream.getvalue()


def _image(pixels: Array) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
