import io
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile, ImageOps

from pipeline.data import torchvision_compat
from pipeline.images import preprocessing
from pipeline.images.preprocessing import Preprocessing, RefusedImage

RGB = Preprocessing(
    formats=("jpeg", "png", "webp"),
    color="rgb",
    resize=None,
    crop=None,
    interpolation="bilinear",
    scale=255.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    max_pixels=10_000,
    dtype="float32",
    layout="NCHW",
)
PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


def encoded(pixels: np.ndarray = PIXELS, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(None, None), (20, None), (64, (48, 48)), ((16, 70), (11, 31)), (None, (60, 41)), (37, (36, 36))],
)
def test_equals_torchvision_bit_for_bit(interpolation, resize, crop) -> None:
    torchvision_compat.load()
    from torchvision import transforms

    how = replace(RGB, interpolation=interpolation, resize=resize, crop=crop)
    steps = [transforms.Resize(resize, transforms.InterpolationMode(interpolation))] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    theirs = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(RGB.mean, RGB.std)])
    ours = preprocessing.tensor(encoded(), how)
    assert ours.dtype == np.float32
    assert_array_equal(ours, theirs(Image.fromarray(PIXELS)).numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(("height", "width"), [(61, 41), (30, 30), (1, 9)])
def test_equals_torchvision_in_every_form(height, width, color, layout, dtype) -> None:
    torchvision_compat.load()
    from torchvision import transforms

    mean, std = ((0.1302,), (0.3069,)) if color == "gray" else (RGB.mean, RGB.std)
    picture = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))
    steps = [transforms.Grayscale()] if color == "gray" else []
    steps += [transforms.Resize(24), transforms.CenterCrop((20, 26)), transforms.ToTensor()]
    theirs = transforms.Compose([*steps, transforms.Normalize(mean, std)])(picture).numpy().astype(dtype)
    how = replace(RGB, color=color, mean=mean, std=std, resize=24, crop=(20, 26), layout=layout, dtype=dtype)
    ours = preprocessing.tensor(encoded(np.asarray(picture)), how)
    assert ours.dtype == dtype
    assert_array_equal(ours, theirs.transpose(1, 2, 0) if layout == "NHWC" else theirs)


def test_layouts_scale_and_dtypes() -> None:
    plain = replace(RGB, mean=(0.0,), std=(1.0,))
    chw = preprocessing.tensor(encoded(), plain)
    assert_array_equal(preprocessing.tensor(encoded(), replace(plain, layout="NHWC")), chw.transpose(1, 2, 0))
    assert_array_equal(preprocessing.tensor(encoded(), replace(plain, layout="flat")), chw.reshape(-1))
    raw = preprocessing.tensor(encoded(), replace(plain, dtype="uint8", layout="NHWC"))
    assert_array_equal(raw, PIXELS)
    halves = preprocessing.tensor(encoded(), replace(plain, scale=127.5, mean=(1.0,), dtype="float16"))
    assert halves.dtype == np.float16
    assert (halves.min(), halves.max()) == (-1, 1)


def test_pixels_and_files_give_the_same() -> None:
    how = replace(RGB, resize=(8, 8))
    assert_array_equal(preprocessing.of_pixels(PIXELS, how), preprocessing.tensor(encoded(), how))
    grey = replace(RGB, color="gray", mean=(0.0,), std=(1.0,))
    found = preprocessing.of_pixels(PIXELS[..., :1], grey)
    assert_array_equal(found[0], PIXELS[..., 0].astype(np.float32) / 255)
    assert_array_equal(np.asarray(Image.open(io.BytesIO(preprocessing.png(PIXELS)))), PIXELS)


def test_colours_depths_and_turned_images() -> None:
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255
    grey = replace(RGB, color="gray", mean=(0.0,), std=(1.0,), dtype="uint8")
    assert preprocessing.tensor(encoded(red), grey)[0, 0, 0] == 76  # 0.299 of 255, ITU-R BT.601
    assert preprocessing.tensor(encoded(np.full((2, 2), 65535, np.uint16)), grey).max() == 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned = preprocessing.tensor(encoded(red, exif=exif), grey)
    assert turned.shape == (1, 3, 2)


@pytest.mark.parametrize("value", [0, 255, 256, 257, 25_700, 65_535])
def test_of_16_bits_the_high_byte_counts_for_grey_as_for_colours(value: int) -> None:
    raw = replace(RGB, dtype="uint8")
    grey = preprocessing.tensor(encoded(np.full((1, 1), value, np.uint16)), raw)
    rows = zlib.compress(b"\0" + struct.pack(">3H", value, value, value))
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    colours = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    assert grey.reshape(-1).tolist() == preprocessing.tensor(colours, raw).reshape(-1).tolist() == [value >> 8] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_stand_upright_as_pillow_turns_them(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(kind=kind, exif=exif)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert_array_equal(preprocessing.tensor(data, replace(RGB, dtype="uint8", layout="NHWC")), np.asarray(theirs))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own, of what is wrong with the EXIF
def test_damaged_exif_refuses_no_image() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "the maker of it", 72.0
    block, raw = exif.tobytes(), replace(RGB, dtype="uint8", layout="NHWC")
    altered = [block[:at] + bytes([value]) + block[at + 1 :] for at in range(6, len(block)) for value in (0, 255)]
    for one in [*altered, *(block[:size] for size in range(7, len(block)))]:
        found = preprocessing.tensor(encoded(exif=one), raw)
        assert found.shape in ((37, 53, 3), (53, 37, 3))
    unreadable = encoded(exif=b"Exif\0\0no such block")
    assert_array_equal(preprocessing.tensor(unreadable, raw), PIXELS)


def test_xmp_turns_what_exif_does_not() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert preprocessing.tensor(encoded(kind="JPEG", xmp=xmp), RGB).shape == (3, 53, 37)


def test_transparent_palettes_warn_of_nothing_and_filters_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(*_: object, **__: object) -> None:
        raise AssertionError("filters are swapped, which threads may undo in any order")

    palette = Image.fromarray(PIXELS).quantize(8)
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=bytes(range(8)))
    monkeypatch.setattr(warnings, "catch_warnings", swapped)
    assert preprocessing.tensor(stream.getvalue(), RGB).shape == (3, 37, 53)


def refusal(data: bytes, how: Preprocessing = RGB) -> str:
    with pytest.raises(RefusedImage) as caught:
        preprocessing.tensor(data, how)
    return str(caught.value)


def test_refusals() -> None:
    noise = encoded(kind="JPEG", quality=95)
    assert refusal(b"") == "no bytes; expected an image file"
    assert refusal(b"hello") == "5 bytes that are no image in JPEG, PNG, WEBP"
    assert "no image in JPEG, PNG, WEBP" in refusal(encoded(kind="BMP"))
    assert refusal(noise[: len(noise) // 2]).startswith("damaged or truncated")
    assert refusal(encoded()[:-40]).startswith("damaged or truncated")
    assert refusal(encoded(), replace(RGB, max_pixels=37 * 53 - 1)) == "53 x 37 pixels; at most 1960 are accepted"
    assert preprocessing.tensor(encoded(kind="BMP"), replace(RGB, formats=())).shape == (3, 37, 53)


def test_a_strip_that_resizing_would_blow_up_is_refused_before_that(monkeypatch: pytest.MonkeyPatch) -> None:
    strip, how = encoded(np.zeros((1, 5000, 3), np.uint8)), replace(RGB, resize=8)
    assert preprocessing.tensor(encoded(np.zeros((1, 100, 3), np.uint8)), how).shape == (3, 8, 800)
    assert preprocessing.tensor(strip, replace(RGB, resize=(8, 8))).shape == (3, 8, 8)
    assert preprocessing.tensor(strip, replace(RGB, resize=1)).shape == (3, 1, 5000)

    def resize(*_: object) -> None:
        raise AssertionError("resized")

    monkeypatch.setattr(Image.Image, "resize", resize)
    assert refusal(strip, how) == "5000 x 1 pixels would be resized to 40000 x 8; at most 10000 are accepted"
    upright = encoded(np.zeros((5000, 1, 3), np.uint8))
    assert refusal(upright, how) == "1 x 5000 pixels would be resized to 8 x 40000; at most 10000 are accepted"


def test_too_little_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", exhausted)
    assert refusal(encoded(), replace(RGB, resize=8)) == "there is not enough memory for it"


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes as often as to make ``count`` of them."""
    data = encoded(kind="JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preprocessing.tensor(scans(100), RGB).shape == (3, 37, 53)

    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert refusal(scans(101)) == "a JPEG of more than 100 scans"
    first, *others = scans(300).split(b"\xff\xda")
    hidden = b"\xff\x01\xff\xff\xff\xda".join([b"\xff\xda".join([first, others[0]]), *others[1:]])
    assert refusal(hidden) == "a JPEG of more than 100 scans"  # behind markers that have no length


def test_scans_are_counted_in_the_image_only() -> None:
    data, marker = encoded(kind="JPEG"), b"\xff\xda"
    film = data + marker * 300  # as phones append it to a photo
    comment = data[:2] + b"\xff\xfe" + struct.pack(">H", 602) + marker * 300 + data[2:]
    for one in (film, comment):
        assert_array_equal(preprocessing.tensor(one, RGB), preprocessing.tensor(data, RGB))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    data = encoded(np.zeros((200, 200), np.uint8))
    monkeypatch.setattr(Image.Image, "convert", decode)
    assert refusal(data) == "200 x 200 pixels; at most 10000 are accepted"
    size = struct.pack(">II", 40_000, 40_000)  # more than Pillow itself opens
    header = b"IHDR" + size + data[24:29]
    huge = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    assert refusal(huge) == "more than 178956970 pixels; at most 10000 are accepted"
    assert Image.MAX_IMAGE_PIXELS is not None
    assert preprocessing.MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_json_keeps_everything() -> None:
    how = replace(RGB, resize=(3, 4), crop=(1, 2))
    assert Preprocessing.from_json(how.to_json()) == how
    assert Preprocessing.from_json(replace(how, resize=5).to_json()).resize == 5
    for text in ("{}", "[]", "no"):
        with pytest.raises(ValueError):
            Preprocessing.from_json(text)
