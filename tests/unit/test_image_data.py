from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from pipeline import image_data, torchvision_compat
from pipeline.artifacts import Signature, TensorSpec
from pipeline.config.schema import Data
from pipeline.errors import ConfigError, MissingError, StageError


def signature(shape, *, dtype="float32", layout=None, batch="N") -> Signature:
    return Signature(
        inputs=(TensorSpec(name="image", dtype=dtype, shape=shape, layout=layout),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(batch, 2) if batch else (2,)),),
        batch=batch,
    )


def target(shape=("N", 3, 4, 6), data=None, **kwargs) -> image_data.ImageInput:
    return image_data.ImageInput.of(data or Data(images="x"), signature(shape, **kwargs))


def save(path: Path, pixels: np.ndarray, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


def test_geometry_follows_the_signature() -> None:
    found = target(("N", 4, 6, 3), layout="NHWC")
    assert (found.layout, found.channels, found.size) == ("NHWC", 3, (4, 6))
    found = target(("N", 4, 6, 1))
    assert (found.layout, found.channels, found.size) == ("NHWC", 1, (4, 6))
    found = target(("N", 3, "H", "W"), Data(images="x", image_size=(5, 7)))
    assert (found.layout, found.size) == ("NCHW", (5, 7))
    assert target(("N", 3, "H", "W")).size is None
    assert target((3, 4, 6), batch=None).leading is False
    assert target((1, 3, 4, 6), batch=None).leading is True


@pytest.mark.parametrize(
    ("shape", "data", "dtype", "message"),
    [
        (("N", 2, 8, 8), Data(images="x"), "float32", "has 2 channels"),
        (("N", 1, 8, 8), Data(images="x", channels=3), "float32", "has 1 channels"),
        (("N", 3, 8, 8), Data(images="x", image_size=(9, 8)), "float32", "is 8x8"),
        (("N", 7), Data(images="x", image_size=(9, 8)), "float32", "is no image"),
        (("N", 3, 8, 8), Data(images="x"), "int64", "is no image"),
        (("N", 3, 8, 8), Data(images="x", mean=(0.1, 0.2)), "float32", "`mean` and `std`"),
        (("N", 3, 8, 8), Data(images="x", mean=(0.1,)), "uint8", "raw pixels"),
    ],
)
def test_geometry_refuses(shape, data, dtype, message) -> None:
    with pytest.raises(ConfigError, match=message):
        target(shape, data, dtype=dtype)


def test_geometry_refuses_several_inputs() -> None:
    spec = TensorSpec(name="a", dtype="float32", shape=("N", 3, 8, 8))
    two = Signature(inputs=(spec, TensorSpec(name="b", dtype="float32", shape=("N", 1))), outputs=(), batch="N")
    with pytest.raises(ConfigError, match="one input"):
        image_data.ImageInput.of(Data(images="x"), two)


def test_tensors_normalise_and_order() -> None:
    pixels = np.zeros((1, 4, 6, 3), np.float32)
    pixels[0, 1, 2] = (0.25, 0.5, 1.0)
    made = target(data=Data(images="x", mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 2.0))).tensors(pixels)
    assert made.shape == (1, 3, 4, 6)
    assert made.dtype == np.float32
    assert_allclose(made[0, :, 1, 2], [-0.5, 0.0, 0.5])
    raw = target(("N", 4, 6, 3), dtype="uint8", layout="NHWC").tensors(pixels)
    assert raw[0, 1, 2].tolist() == [64, 128, 255]
    flat = target(("N", 24), Data(images="x", image_size=(4, 6))).tensors(pixels[..., :1])
    assert flat.shape == (1, 24)
    assert flat[0, 8] == 0.25


def test_resized_is_bilinear_without_antialias_and_repeats_grey() -> None:
    wide = image_data.resized(np.asarray([[[[0.0], [1.0]]]], np.float32), target(("N", 3, 1, 4)))
    assert wide.shape == (1, 1, 4, 3)
    assert_allclose(wide[0, 0, :, 0], [0.0, 0.25, 0.75, 1.0])
    assert (wide[..., 0] == wide[..., 2]).all()
    grey = image_data.resized(np.full((1, 1, 1, 3), 255, np.uint8), target(("N", 1, 1, 1)))
    assert_allclose(grey, [[[[1.0]]]], rtol=1e-6)


def test_read_image_turns_by_exif(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = save(tmp_path / "a.png", pixels, exif=exif)
    read = image_data.read_image(path, target(("N", 1, "H", "W")))
    assert read.shape == (3, 2, 1)
    assert read[0, 1, 0] == 1.0


def test_read_image_resizes_and_converts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((9, 9, 4), 255, np.uint8))
    assert image_data.read_image(path, target()).shape == (4, 6, 3)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(deep)
    assert_allclose(image_data.read_image(deep, target(("N", 1, "H", "W"))), 1.0)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name in ("half.png", "text.png", "float.tif"):
        with pytest.raises(StageError, match="not a readable image") as caught:
            image_data.read_image(tmp_path / name, target())
        assert caught.value.where == str(tmp_path / name)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", np.zeros((20, 20), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(StageError, match="not a readable image") as caught:
        image_data.read_image(path, target())
    assert "DecompressionBomb" in caught.value.found


def test_scan_tells_folders_apart(tmp_path: Path) -> None:
    pixel = np.zeros((1, 1), np.uint8)
    for name in ("flat/b.png", "flat/a.png", "classes/dog/1.png", "classes/cat/2.png", "parts/train/x/1.png"):
        save(tmp_path / name, pixel)
    save(tmp_path / "parts/test/y/1.png", pixel)
    save(tmp_path / "classes/.hidden/3.png", pixel)
    (tmp_path / "flat/README.md").write_text("not an image")
    flat = image_data.scan(tmp_path / "flat")
    assert ([path.name for path in flat.test], flat.labels, flat.test_targets) == (["a.png", "b.png"], (), ())
    classes = image_data.scan(tmp_path / "classes")
    assert (classes.labels, classes.test_targets, classes.train) == (("cat", "dog"), (0, 1), ())
    parts = image_data.scan(tmp_path / "parts")
    assert (parts.labels, parts.train_targets, parts.test_targets) == (("x", "y"), (0,), (1,))


def test_scan_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such image folder"):
        image_data.scan(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no images"):
        image_data.scan(tmp_path)
    save(tmp_path / "cat/1.png", np.zeros((1, 1), np.uint8))
    save(tmp_path / "loose.png", np.zeros((1, 1), np.uint8))
    with pytest.raises(ConfigError, match="images beside class folders"):
        image_data.scan(tmp_path)


def test_a_data_set_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_compat.load()
    import urllib.error
    import urllib.request

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for name, expected in (("mnist", "train-images-idx3-ubyte"), ("cifar10", "cifar-10-batches-py")):
        with pytest.raises(MissingError, match=f"{name} is not in `root`") as caught:
            image_data.downloaded(name, tmp_path / "data")
        assert caught.value.where == str(tmp_path / "data")
        assert expected.split("-")[0] in caught.value.hint


def test_mnist_from_local_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        images = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(range(count))
        )
    train, train_targets, test, test_targets, labels = image_data.downloaded("mnist", tmp_path)
    assert (train.shape, test.shape, train.dtype) == ((3, 28, 28, 1), (2, 28, 28, 1), np.uint8)
    assert (train_targets.tolist(), test_targets.tolist(), labels[9]) == ([0, 1, 2], [0, 1], "9")
    assert train[0, 0, 5, 0] == 5
