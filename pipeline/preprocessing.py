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
import struct
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # Pillow is imported where it is used: a plan knows these settings and opens no image
    from PIL import Image

Array = npt.NDArray[Any]

# what Pillow raises over damaged files; the second line is mostly EXIF blocks (found by altering bytes, Pillow 13.0)
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
        max_pixels: larger images are refused before they are decoded.
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
        RefusedImage: see decoded.
    """
    return normalised(sized(decoded(data, how), how), how)


def of_pixels(pixels: Array, how: Preprocessing) -> Array:
    """The same for pixels at hand: uint8 ``[H, W, 1 or 3]``."""
    image = _image(pixels)
    return normalised(sized(image.convert(_mode(how)), how), how)


def decoded(data: bytes, how: Preprocessing) -> Image.Image:
    """The first frame of an image file, upright by its EXIF tag, of 8 bits per channel, in mode L or RGB.

    Raises:
        RefusedImage: empty, of another format, damaged, truncated, or of more than ``max_pixels``.
    """
    if not data:
        raise RefusedImage("no bytes; expected an image file")
    from PIL import Image, ImageOps, UnidentifiedImageError

    accepted = [name.upper() for name in how.formats] or None
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd palettes and EXIF blocks that it reads all the same, and of sizes, judged here
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=accepted) as opened:
                if opened.width * opened.height > how.max_pixels:
                    raise RefusedImage(
                        f"{opened.width} x {opened.height} pixels; at most {how.max_pixels} are accepted"
                    )
                image: Image.Image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
                elif image.mode in ("I", "F"):
                    raise RefusedImage(f"pixels of mode {image.mode}; expected 8 or 16 bits per channel")
                return image.convert(_mode(how))
    except UnidentifiedImageError as error:
        named = ", ".join(accepted) if accepted else "a format that Pillow reads"
        raise RefusedImage(f"{len(data)} bytes that are no image in {named}") from error
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        if isinstance(error, RefusedImage):
            raise
        raise RefusedImage(f"damaged or truncated: {error}") from error


def _mode(how: Preprocessing) -> str:
    return "L" if how.color == "gray" else "RGB"


def sized(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Resized, then cropped (torchvision.transforms.functional ``resize``, ``center_crop``, 0.28)."""
    if how.resize is not None:
        height, width = _resized(image.height, image.width, how.resize)
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
