"""The curl line: JSON while it is short, bytes when it is not; that it works is shown in tests/integration."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from pipeline.errors import ConfigError
from pipeline.serve.triton import curl_line
from tests.models import make_models as make

URL = "http://127.0.0.1:8000"


def _add(root, name, inputs, output="float32", max_batch_size=8):
    outputs = [make.tensor_text("y", output, [3])]
    config = make.config_text("onnxruntime_onnx", inputs=inputs, outputs=outputs, max_batch_size=max_batch_size)
    make.add_model(root, name, config, None)


def test_small_inputs_are_written_out(tmp_path):
    inputs = [make.tensor_text("ids", "int64", [-1, 2]), make.tensor_text("word", "string", [1])]
    _add(tmp_path, "m", inputs)
    words = shlex.split(curl_line(tmp_path, "m", URL))
    assert words[:5] == ["curl", "-sS", "--noproxy", "*", f"{URL}/v2/models/m/infer"]
    assert json.loads(words[-1])["inputs"] == [
        {"name": "ids", "shape": [1, 1, 2], "datatype": "INT64", "data": [0, 0]},
        {"name": "word", "shape": [1, 1], "datatype": "BYTES", "data": [""]},
    ]


def test_large_inputs_are_zero_bytes_behind_a_header(tmp_path):
    _add(tmp_path, "m", [make.tensor_text("image", "float32", [3, 224, 224])])
    line = curl_line(tmp_path, "m", URL)
    assert len(line) < 300
    header = shlex.split(line[1 : line.index(";")])[-1]
    (tensor,) = json.loads(header)["inputs"]
    assert tensor["shape"] == [1, 3, 224, 224]
    assert tensor["parameters"] == {"binary_data_size": 4 * 3 * 224 * 224}
    assert f"head -c {4 * 3 * 224 * 224} /dev/zero" in line
    assert re.search(r"Inference-Header-Content-Length: (\d+)", line)[1] == str(len(header))
    assert "--output" not in line


def test_half_floats_travel_as_bytes_both_ways(tmp_path):
    _add(tmp_path, "m", [make.tensor_text("x", "float16", [3])], output="float16", max_batch_size=0)
    line = curl_line(tmp_path, "m", URL)
    assert '"shape":[3]' in line
    assert "head -c 6 /dev/zero" in line
    assert '"binary_data_output":true' in line
    assert line.endswith("--output answer.bin")


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no model absent"):
        curl_line(tmp_path, "absent", URL)
