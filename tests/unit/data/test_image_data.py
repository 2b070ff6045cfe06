import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from pipeline.base.errors import ConfigError, MissingError, StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.data import image_data, images, torchvision_compat
from pipeline.images import preprocessing
from pipeline.schema.images import Preprocess
from pipeline.schema.model import Data


def signature(shape, *, dtype="float32", layout=None, batch="N") -> Signature:
    return Signature(
        inputs=(TensorSpec(name="image", dtype=dtype, shape=shape, layout=layout),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(batch, 2) if batch else (2,)),),
        batch=batch,
    )


def target(shape=("N", 3, 4, 6), data=None, **kwargs) -> image_data.ImageInput:
    return image_data.ImageInput.of(data or Data(images="x"), signature(shape, **kwargs))


def sized(shape, data=None, **kwargs) -> tuple[str, int, object]:
    how = target(shape, data, **kwargs).how
    return (how.layout, how.channels, how.resize)


def save(path: Path, pixels: np.ndarray, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


def test_geometry_follows_the_signature() -> None:
    assert sized(("N", 4, 6, 3), layout="NHWC") == ("NHWC", 3, (4, 6))
    assert sized(("N", 4, 6, 1)) == ("NHWC", 1, (4, 6))
    assert sized(("N", 3, "H", "W"), Data(images="x", image_size=(5, 7))) == ("NCHW", 3, (5, 7))
    assert sized(("N", 3, "H", "W")) == ("NCHW", 3, None)
    assert sized(("N", 1, "H", "W"), Data(dataset="digits")) == ("NCHW", 1, (8, 8))
    assert sized(("N", 24), Data(images="x", image_size=(4, 6))) == ("flat", 1, (4, 6))
    assert target((3, 4, 6), batch=None).leading is False
    assert target((1, 3, 4, 6), batch=None).leading is True


def test_the_yamls_preprocess_decides() -> None:
    how = images.of_section(Preprocess(resize=8, crop=(4, 6)), signature(("N", 3, 4, 6)))
    found = image_data.ImageInput.of(Data(images="x"), replace(signature(("N", 3, 4, 6)), image=how))
    assert found.how is how


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


def test_files_become_samples_and_stay_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    paths = [save(tmp_path / name, pixels) for name in ("a.png", "b.bmp")]
    rows = image_data.ImageFiles(paths, target())
    assert rows[0]["image"].shape == (1, 3, 4, 6)
    assert_array_equal(rows[0]["image"], rows[1]["image"])
    assert rows.file(0) == paths[0].read_bytes()
    served = rows.file(1)  # no server takes a BMP: the same pixels, as PNG
    assert_array_equal(np.asarray(Image.open(io.BytesIO(served))), pixels)
    assert len(rows.take(np.asarray([1]))) == 1
    flat = image_data.ImageFiles(paths, target((3, 4, 6), batch=None))
    assert flat[0]["image"].shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("formats", "kind"),
    [(("jpeg", "png", "webp"), "PNG"), (("webp",), "WEBP"), (("jpeg", "webp"), "WEBP"), (("jpeg",), "JPEG")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_of_an_accepted_format_and_make_the_very_sample(tmp_path: Path, formats, kind, channels) -> None:
    waves = np.random.default_rng(0).integers(0, 256, (5, 9, 7, channels), np.uint8)
    plain = target(("N", channels, 4, 6))
    given = replace(plain, how=replace(plain.how, formats=formats))
    paths = [save(tmp_path / f"{number}.bmp", np.squeeze(one)) for number, one in enumerate(waves)]
    for rows in (image_data.ImageArrays(waves, given), image_data.ImageFiles(paths, given)):
        for index in range(len(waves)):
            assert Image.open(io.BytesIO(rows.file(index))).format == kind
            assert_array_equal(preprocessing.tensor(rows.file(index), given.how), rows[index]["image"][0])


def test_an_accepted_jpeg_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    path, plain = save(tmp_path / "a.jpg", pixels), target()
    rows = image_data.ImageFiles([path], replace(plain, how=replace(plain.how, formats=("jpeg",))))
    assert rows.file(0) == path.read_bytes()
    assert_array_equal(rows[0]["image"], image_data.ImageFiles([path], plain)[0]["image"])


def test_what_no_accepted_format_can_hold_is_told(tmp_path: Path) -> None:
    path, plain = save(tmp_path / "long.png", np.zeros((1, 16_384), np.uint8)), target()
    rows = image_data.ImageFiles([path], replace(plain, how=replace(plain.how, formats=("webp",))))
    assert rows[0]["image"].shape == (1, 3, 4, 6)
    with pytest.raises(StageError, match="not a readable image"):
        rows.file(0)


def test_a_strip_that_resizing_would_blow_up_is_named(tmp_path: Path) -> None:
    path, plain = save(tmp_path / "strip.png", np.zeros((1, 5000), np.uint8)), target()
    rows = image_data.ImageFiles([path], replace(plain, how=replace(plain.how, resize=8, max_pixels=10_000)))
    with pytest.raises(StageError, match="not a readable image") as caught:
        rows[0]
    assert "would be resized to 40000 x 8" in caught.value.found


def test_pixels_become_samples_and_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 1), np.uint8)
    rows = image_data.ImageArrays(pixels, target(("N", 1, 4, 6))).take(np.asarray([2, 0]))
    assert_array_equal(rows[0]["image"][0, 0], pixels[2, :, :, 0].astype(np.float32) / 255)
    assert_array_equal(np.asarray(Image.open(io.BytesIO(rows.file(1)))), pixels[0, :, :, 0])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name in ("half.png", "text.png", "float.tif", "absent.png"):
        with pytest.raises(StageError, match="not a readable image") as caught:
            image_data.ImageFiles([tmp_path / name], target())[0]
        assert caught.value.where == str(tmp_path / name)


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
