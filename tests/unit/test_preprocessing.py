import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from pipeline import preprocessing, torchvision_compat
from pipeline.preprocessing import Preprocessing, RefusedImage

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


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    data = encoded(np.zeros((200, 200), np.uint8))
    monkeypatch.setattr(Image.Image, "convert", decode)
    assert refusal(data) == "200 x 200 pixels; at most 10000 are accepted"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert "damaged or truncated: Image size (40000 pixels) exceeds limit" in refusal(
        data, replace(RGB, max_pixels=10**9)
    )


def test_json_keeps_everything() -> None:
    how = replace(RGB, resize=(3, 4), crop=(1, 2))
    assert Preprocessing.from_json(how.to_json()) == how
    assert Preprocessing.from_json(replace(how, resize=5).to_json()).resize == 5
    for text in ("{}", "[]", "no"):
        with pytest.raises(ValueError):
            Preprocessing.from_json(text)
