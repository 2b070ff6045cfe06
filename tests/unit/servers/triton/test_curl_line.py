"""The curl line: JSON while it is short, bytes when it is not; that it works is shown in tests/integration."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from pipeline.base.errors import ConfigError
from pipeline.servers.triton.embedded import curl_line
from pipeline.servers.triton.models import engines_of, ensembles_of, home, models_of
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


def _add_ensemble(root, name, asks):
    config = f"""
    name: "{name}" platform: "ensemble" max_batch_size: 8
    input {{ name: "image" data_type: TYPE_STRING dims: [1] }}
    output {{ name: "labels" data_type: TYPE_STRING dims: [1] }}
    ensemble_scheduling {{ step {{ model_name: "{asks}" }} }}"""
    make.add_model(root, name, config, None)


def test_a_model_that_takes_files_is_sent_one_as_it_is(tmp_path):
    _add_ensemble(tmp_path, "m", "m_onnx")
    line = curl_line(tmp_path, "m", URL)
    assert line.startswith(f"curl -sS --noproxy '*' {URL}/v2/models/m/infer --data-binary @FILE -H 'Content-Type: ")
    assert line.endswith("-H 'Inference-Header-Content-Length: 0' --output -")
    for number, suffix in ((9, "png"), (10, "jpg")):
        (tmp_path / "m" / str(number)).mkdir()
        (tmp_path / "m" / str(number) / f"example.{suffix}").touch()
    assert f"@{tmp_path}/m/10/example.jpg" in shlex.split(curl_line(tmp_path, "m", URL))


def test_engines_are_told_with_the_ensembles_that_ask_them(tmp_path):
    _add(tmp_path, "m_onnx", [make.tensor_text("x", "float32", [3])])
    make.add_model(tmp_path, "m_trt", 'name: "m_trt" platform: "tensorrt_plan" max_batch_size: 8', None)
    _add_ensemble(tmp_path, "m", "m_onnx")
    _add_ensemble(tmp_path, "fast", "m_trt")
    names = models_of(tmp_path)
    assert engines_of([tmp_path], names) == ("fast", "m_trt")
    assert ensembles_of([tmp_path], names) == ("fast", "m")


def test_models_of_several_repositories(tmp_path):
    main, beside = tmp_path / "main", tmp_path / "beside"
    _add(main, "m_onnx", [make.tensor_text("x", "float32", [3])])
    _add_ensemble(main, "fast", "m_trt")  # asks what is in the other
    make.add_model(beside, "m_trt", 'name: "m_trt" backend: "tensorrt_rtx" max_batch_size: 8', None)
    names = models_of(main, beside)
    assert names == ("fast", "m_onnx", "m_trt")
    assert engines_of([main, beside], names) == ("fast", "m_trt")
    assert [home([main, beside], name) for name in (*names, "absent")] == [main, main, beside, main]
    _add(beside, "m_onnx", [make.tensor_text("x", "float32", [3])])
    with pytest.raises(ConfigError, match="two repositories hold a model of the same name") as caught:
        models_of(main, beside)
    assert caught.value.found == f"m_onnx: {main}, {beside}"
