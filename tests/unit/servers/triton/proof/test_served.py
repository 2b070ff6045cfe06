from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.values import Signature, TensorSpec
from pipeline.servers.triton.client.messages import IndexRow, ModelMetadata, TensorMetadata
from pipeline.servers.triton.proof import served

TEXT = """
name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [3, -1] }
input { name: "n" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }
output { name: "y" data_type: TYPE_FP16 dims: [2] }
instance_group { count: 2 kind: KIND_CPU }
dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 500 }
parameters { key: "a" value { string_value: "1" } }
"""
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=("N", 3, "L")),
        TensorSpec(name="n", dtype="int64", shape=("N",)),
    ),
    outputs=(TensorSpec(name="y", dtype="float16", shape=("N", 2)),),
    batch="N",
)
METADATA = ModelMetadata(
    name="m",
    platform="onnxruntime_onnx",
    versions=("2", "10"),
    inputs=(
        TensorMetadata(name="n", datatype="INT64", shape=(-1, 1)),
        TensorMetadata(name="x", datatype="FP32", shape=(-1, 3, -1)),
    ),
    outputs=(TensorMetadata(name="y", datatype="FP16", shape=(-1, 2)),),
)


def config(text: str = TEXT):
    return model_config.parse_text(text, "test")


def metadata_differences(metadata: ModelMetadata) -> list[str]:
    return served.metadata_differences(SIGNATURE, config(), [10, 2], metadata)


def test_matching_metadata_has_no_differences() -> None:
    assert metadata_differences(METADATA) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"platform": ""}, "platform: expected onnxruntime_onnx, served none"),
        ({"versions": ("2", "3", "10")}, "versions: expected 2, 10, served 2, 3, 10"),
        ({"versions": ()}, "versions: expected 2, 10, served none"),
        ({"outputs": ()}, "output y: expected, not served; served "),
        (
            {"outputs": (TensorMetadata(name="y", datatype="FP32", shape=(-1, 2)),)},
            "output y: expected FP16[-1, 2], served FP32[-1, 2]",
        ),
        (
            {"inputs": (*METADATA.inputs, TensorMetadata(name="z", datatype="FP32", shape=(1,)))},
            "input z: served, not expected",
        ),
        (
            {"inputs": (METADATA.inputs[0], replace(METADATA.inputs[1], shape=(-1, 3, 5)))},
            "input x: expected FP32[-1, 3, -1], served FP32[-1, 3, 5]",
        ),
    ],
)
def test_each_difference_of_metadata_is_told(change: dict[str, object], text: str) -> None:
    assert metadata_differences(replace(METADATA, **change)) == [text]


def test_what_triton_adds_to_a_config_is_no_difference() -> None:
    filled = config(
        TEXT.replace('name: "m"', 'name: "m" runtime: "model.py" default_model_filename: "model.onnx"').replace(
            "count: 2", 'name: "m_0" count: 2'
        )
        + 'optimization { input_pinned_memory { enable: true } } parameters { key: "b" value { string_value: "2" } }'
    )
    assert served.config_differences(config(), filled) == []


def test_the_runtime_is_never_compared() -> None:
    assert served.config_differences(config(TEXT + 'runtime: "libtriton_onnxruntime.so"'), config()) == []


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("max_batch_size: 8", "max_batch_size: 4", "max_batch_size: expected 8, served 4"),
        (
            "microseconds: 500",
            "microseconds: 1",
            "dynamic_batching.max_queue_delay_microseconds: expected 500, served 1",
        ),
        ("[4, 8]", "[4, 6]", "dynamic_batching.preferred_batch_size[1]: expected 8, served 6"),
        ("[4, 8]", "[4]", "dynamic_batching.preferred_batch_size: expected 2 entries, served 1"),
        ("count: 2", "count: 1", "instance_group[0].count: expected 2, served 1"),
        ("TYPE_FP16", "TYPE_FP32", "output[0].data_type: expected 10, served 11"),
        ('string_value: "1"', 'string_value: "3"', "parameters[a].string_value: expected 1, served 3"),
        ('key: "a"', 'key: "c"', 'parameters[a]: expected string_value: "1", served none'),
        ("dims: [3, -1]", "dims: [3, 7]", "input[0].dims[1]: expected -1, served 7"),
    ],
)
def test_each_difference_of_a_config_is_told(old: str, new: str, text: str) -> None:
    assert served.config_differences(config(), config(TEXT.replace(old, new))) == [text]


def test_a_batch_size_of_zero_counts() -> None:
    without = config(TEXT.replace("max_batch_size: 8", ""))
    assert served.config_differences(without, config()) == ["max_batch_size: expected 0, served 8"]
    assert served.config_differences(without, without) == []


def test_index_differences() -> None:
    rows = [
        IndexRow(name="m", version="1", state="READY", reason=""),
        IndexRow(name="m", version="2", state="UNAVAILABLE", reason="no file"),
        IndexRow(name="other", version="3", state="READY", reason=""),
    ]
    assert served.index_differences(rows, "m", [1]) == []
    assert served.index_differences(rows, "m", [3, 2, 1]) == [
        "version 2: UNAVAILABLE no file",
        "version 3: not in the index",
    ]


def test_as_served_follows_a_reshape() -> None:
    message = config()
    array = np.arange(4)
    assert served.as_served(array, message.input[1], batching=True).shape == (4, 1)
    assert served.as_served(array, message.input[0], batching=True) is array
    assert served.as_served(np.zeros(1), message.input[1], batching=False).shape == (1,)
