from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy import testing

from pipeline.base import model_config
from pipeline.base.errors import ConfigError, SmokeError
from pipeline.base.values import TensorSpec
from pipeline.data import images
from pipeline.servers.triton.client import prediction
from pipeline.servers.triton.client.connection import is_loopback


def config(text: str):
    return model_config.parse_text(text, "test")


IMAGE = 'input { name: "image" data_type: TYPE_FP32 dims: [1, 2, 4] format: FORMAT_NCHW } max_batch_size: 2 '


def test_scores_go_through_softmax() -> None:
    rows = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, 0.0]], np.float32)
    found = prediction.probabilities(rows)
    testing.assert_allclose(found[0], [0.09003057, 0.24472847, 0.66524096], rtol=1e-6)
    testing.assert_allclose(found[1], [1.0, 0.0, 0.0])
    assert found.dtype == np.float64


def test_probabilities_stay_and_log_probabilities_are_undone() -> None:
    rows = np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    testing.assert_array_equal(prediction.probabilities(rows), rows)
    logs = np.log(np.array([[0.2, 0.3, 0.5]]))
    testing.assert_allclose(prediction.probabilities(logs), [[0.2, 0.3, 0.5]])
    negative = np.array([[-1.0, -2.0, -3.0]])  # not log-probabilities
    testing.assert_allclose(prediction.probabilities(negative).sum(axis=1), 1.0)
    assert prediction.probabilities(negative)[0, 0] == pytest.approx(0.66524096)


def test_images_are_scaled_and_normalised_as_the_config_says(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 20), (255, 255, 255)).save(tmp_path / "white.png")
    how = images.plain(TensorSpec(name="image", dtype="float32", shape=("N", 1, 2, 4)), "NCHW", 1, (2, 4), mean=(0.5,))
    served = config(IMAGE)
    served.parameters["preprocess"].string_value = how.to_json()
    array = prediction._read_image(tmp_path / "white.png", served)
    assert array.shape == (1, 1, 2, 4)
    testing.assert_allclose(array, 0.5)
    raw = 'input { name: "image" data_type: TYPE_UINT8 dims: [-1, -1, 3] format: FORMAT_NHWC } max_batch_size: 2'
    pixels = prediction._read_image(tmp_path / "white.png", config(raw))
    assert (pixels.shape, pixels.dtype, pixels.max()) == ((1, 20, 40, 3), np.uint8, 255)
    whole = 'input { name: "image" data_type: TYPE_FP32 dims: [3, 2, 4] format: FORMAT_NCHW }'
    assert prediction._read_image(tmp_path / "white.png", config(whole)).shape == (3, 2, 4)
    served.parameters["preprocess"].string_value = '{"mean": 1}'
    with pytest.raises(SmokeError, match="`preprocess` cannot be read"):
        prediction._read_image(tmp_path / "white.png", served)


def test_images_stand_upright(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("L", (2, 4))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    array = prediction._read_image(tmp_path / "turned.png", config(IMAGE))
    testing.assert_array_equal(array[0, 0], [[0, 0, 0, 1], [0, 0, 0, 0]])


def test_a_missing_batch_dimension_is_added(tmp_path: Path) -> None:
    text = 'input { name: "x" data_type: TYPE_FP32 dims: [3] } max_batch_size: 2'
    for shape in ((3,), (1, 3)):
        assert prediction._batched({"x": np.zeros(shape)}, config(text), tmp_path)["x"].shape == (1, 3)
    assert prediction._batched({"x": np.zeros((5, 3))}, config(text), tmp_path)["x"].shape == (5, 3)
    leading = 'input { name: "x" data_type: TYPE_FP32 dims: [-1, 3] }'
    assert prediction._batched({"x": np.zeros(3)}, config(leading), tmp_path)["x"].shape == (1, 3)
    for case, array, problem in (
        (text, np.zeros((1, 4)), r"x takes \[-1, 3\], found \[1, 4\]"),
        (text, np.zeros((0, 3)), "an array is empty"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [3] }', np.zeros((1, 3)), r"x takes \[3\], found \[1, 3\]"),
    ):
        with pytest.raises(ConfigError, match=problem):
            prediction._batched({"x": array}, config(case), tmp_path)


@pytest.mark.parametrize(
    ("found", "wanted", "fine"),
    [
        (np.float64([1.5]), "TYPE_FP32", True),
        (np.int64([7]), "TYPE_INT32", True),
        (np.uint8([7]), "TYPE_FP32", True),
        (np.int64([2**40]), "TYPE_INT32", False),
        (np.float32([1.0]), "TYPE_INT64", False),
        (np.array(["a"]), "TYPE_FP32", False),
    ],
)
def test_arrays_are_converted_where_nothing_is_lost(tmp_path: Path, found: np.ndarray, wanted: str, fine: bool) -> None:
    (tensor,) = config(f'input {{ name: "x" data_type: {wanted} dims: [1] }}').input
    if fine:
        testing.assert_array_equal(prediction._converted(found, tensor, tmp_path), found)
    else:
        with pytest.raises(ConfigError, match="input x takes"):
            prediction._converted(found, tensor, tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ConfigError, match="not a readable array file"):
        prediction._read(tmp_path / "x.npy", config('input { name: "x" data_type: TYPE_FP32 dims: [1] }'))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('max_batch_size: 2 output { name: "y" data_type: TYPE_FP32 dims: [3] }', "y"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [-1, 3] }', "y"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [3] }', "y"),
        ('max_batch_size: 2 output { name: "y" data_type: TYPE_FP32 dims: [1] }', None),
        ('max_batch_size: 2 output { name: "y" data_type: TYPE_INT64 dims: [3] }', None),
        ('max_batch_size: 2 output { name: "y" data_type: TYPE_FP32 dims: [3, 4] }', None),
        (
            'max_batch_size: 2 output { name: "a" data_type: TYPE_FP32 dims: [3] } '
            'output { name: "b" data_type: TYPE_FP32 dims: [3] label_filename: "l.txt" }',
            "b",
        ),
        (
            'max_batch_size: 2 output { name: "a" data_type: TYPE_FP32 dims: [3] } '
            'output { name: "b" data_type: TYPE_FP32 dims: [3] }',
            None,
        ),
    ],
)
def test_which_output_ranks_classes(text: str, name: str | None) -> None:
    found = prediction._scores_output(config(text))
    assert (found.name if found else None) == name


def test_is_loopback() -> None:
    assert is_loopback("http://127.0.0.1:8000")
    assert is_loopback("localhost:8001")
    assert is_loopback("[::1]:8001")
    assert not is_loopback("http://triton.example:8000")
    assert not is_loopback("10.0.0.1:8001")


FILES = (
    'max_batch_size: 4 input { name: "image" data_type: TYPE_STRING dims: [1] } '
    'output { name: "labels" data_type: TYPE_STRING dims: [1] }'
)


def test_a_model_that_takes_files_gets_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes(b"any bytes\0")
    inputs = prediction._batched(prediction._read(tmp_path / "note.txt", config(FILES)), config(FILES), tmp_path)
    assert inputs["image"].tolist() == [[b"any bytes\0"]]
    with pytest.raises(ConfigError, match="not a readable file"):
        prediction._read(tmp_path / "absent.png", config(FILES))


def test_labels_of_an_ensemble_are_rows(tmp_path: Path) -> None:
    text = b'[{"label": "nine", "probability": 0.9}, {"label": "four", "probability": 0.1}]'

    def rows(value: bytes, top: int = 1) -> list[dict[str, object]]:
        outputs = {"labels": np.array([[value]], np.object_)}
        return prediction._rows(None, "m", {}, outputs, config(FILES), top)  # type: ignore[arg-type]

    assert rows(text) == [{"label": "nine", "probability": 0.9}]
    assert len(rows(text, top=5)) == 2
    assert rows(b"[]") == []
    assert rows(b"\xff") == [{"output": "labels", "dtype": "object", "shape": [1, 1], "values": [["\ufffd"]]}]
