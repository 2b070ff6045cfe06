from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.load.inputs import MOST, questions


def _config(inputs: str, max_batch_size: int = 8):
    return model_config.parse_text(f"max_batch_size: {max_batch_size} {inputs}", "test")


def test_made_up_inputs_are_the_same_each_time_and_differ_from_each_other() -> None:
    config = _config("input { name: 'x' data_type: TYPE_FP32 dims: [3] }")
    one, other = questions(config, [], []), questions(config, [], [])
    assert len(one) == 16
    for first, second in zip(one, other, strict=True):
        assert first.inputs["x"].dtype == np.float32
        assert first.inputs["x"].shape == (1, 3)
        assert np.array_equal(first.inputs["x"], second.inputs["x"])
    assert len({item.inputs["x"].tobytes() for item in one}) == 16
    assert one[3].origin == "made up 3"


def test_sizes_and_values_suit_what_they_stand_for() -> None:
    config = _config(
        """input { name: 'ids' data_type: TYPE_INT64 dims: [-1] }
        input { name: 'mask' data_type: TYPE_INT32 dims: [-1] }
        input { name: 'one' data_type: TYPE_INT64 dims: [1] }
        input { name: 'nchw' data_type: TYPE_FP16 dims: [-1, -1, 32] format: FORMAT_NCHW }
        input { name: 'nhwc' data_type: TYPE_UINT8 dims: [-1, -1, 3] format: FORMAT_NHWC }
        input { name: 'flag' data_type: TYPE_BOOL dims: [2] } input { name: 'text' data_type: TYPE_STRING dims: [2] }"""
    )
    asked = questions(config, [], [])
    shapes = {name: array.shape for name, array in asked[0].inputs.items()}
    assert shapes == {"ids": (1, 16), "mask": (1, 16), "one": (1, 1), "nchw": (1, 3, 224, 32),
                      "nhwc": (1, 224, 224, 3), "flag": (1, 2), "text": (1, 2)}  # fmt: skip
    assert {name: str(array.dtype) for name, array in asked[0].inputs.items()} == {
        "ids": "int64", "mask": "int32", "one": "int64", "nchw": "float16", "nhwc": "uint8", "flag": "bool",
        "text": "object",
    }  # fmt: skip
    assert set(np.unique([item.inputs["ids"] for item in asked])) == {0, 1}
    assert len({item.inputs["one"].item() for item in asked}) > 4
    assert asked[0].inputs["nhwc"].max() > 200
    assert asked[5].inputs["text"].tolist() == [[b"5-0", b"5-1"]]
    assert asked[15].inputs["nchw"].max() > 0.9 > 0.1 > asked[0].inputs["nchw"].max()


def test_bf16_is_refused() -> None:
    with pytest.raises(ConfigError, match="input x is BF16"):
        questions(_config("input { name: 'x' data_type: TYPE_BF16 dims: [3] }"), [], [])


def test_each_row_of_an_array_file_is_an_input(tmp_path: Path) -> None:
    rows = np.arange(3 * 70, dtype=np.float32).reshape(70, 3)
    np.savez(tmp_path / "rows.npz", x=rows)
    config = _config("input { name: 'x' data_type: TYPE_FP32 dims: [3] }")
    asked = questions(config, [], [tmp_path / "rows.npz", tmp_path / "rows.npz"])
    assert len(asked) == MOST
    assert asked[5].origin == "rows.npz row 5"
    assert asked[5].inputs["x"].tolist() == [[15.0, 16.0, 17.0]]
    unbatched = _config("input { name: 'x' data_type: TYPE_FP32 dims: [-1, 3] }", max_batch_size=0)
    (whole,) = questions(unbatched, [], [tmp_path / "rows.npz"])
    assert whole.inputs["x"].shape == (70, 3)


def test_a_model_of_one_string_gets_the_bytes_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG and so on")
    (asked,) = questions(_config("input { name: 'x' data_type: TYPE_STRING dims: [1] }"), [tmp_path / "x.png"], [])
    assert asked.inputs["x"].tolist() == [[b"\x89PNG and so on"]]
    with pytest.raises(ConfigError, match="not a readable file"):
        questions(_config("input { name: 'x' data_type: TYPE_STRING dims: [1] }"), [tmp_path / "absent.png"], [])
