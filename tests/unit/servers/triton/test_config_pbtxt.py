from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.base.values import Sample, Signature, TensorSpec
from pipeline.servers.triton import config_pbtxt

IMAGE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("N", 1, 2, 2), layout="NCHW"),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 2), labels=("no", "yes")),),
    batch="N",
)
SAMPLE = Sample(inputs={"image": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)}, outputs={})


def describe(**changes: Any) -> config_pbtxt.ModelFiles:
    arguments: dict[str, Any] = {
        "model_name": "m_onnx",
        "kind": "onnx",
        "signature": IMAGE,
        "max_batch_size": 4,
        "fields": {},
        "warmup": SAMPLE,
    }
    return config_pbtxt.describe(**{**arguments, **changes})


def fields(described: config_pbtxt.ModelFiles) -> dict[str, Any]:
    return model_config.to_dict(described.config)


def test_the_configuration_is_complete() -> None:
    config = fields(describe())
    assert config["name"] == "m_onnx"
    assert (config["backend"], config["platform"], config["max_batch_size"]) == ("onnxruntime", "onnxruntime_onnx", 4)
    (tensor,) = config["input"]
    assert tensor["data_type"] == "TYPE_FP32"
    assert [int(size) for size in tensor["dims"]] == [1, 2, 2]
    assert tensor["format"] == "FORMAT_NCHW"
    assert config["output"][0]["label_filename"] == "labels.txt"
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert config["dynamic_batching"] == {}


def test_labels_and_warmup_are_written_beside_it() -> None:
    extra = describe().extra
    assert extra["labels.txt"] == b"no\nyes\n"
    assert np.frombuffer(extra["warmup/golden_image"], np.float32).tolist() == [0, 1, 2, 3]


def test_without_a_batch_dims_are_full_shapes_and_nothing_batches() -> None:
    config = fields(describe(max_batch_size=0))
    assert [int(size) for size in config["input"][0]["dims"]] == [-1, 1, 2, 2]
    assert "dynamic_batching" not in config
    assert "format" not in config["input"][0]  # Triton wants exactly three dims with a format


def test_a_scalar_per_row_is_reshaped() -> None:
    score = Signature(inputs=IMAGE.inputs, outputs=(TensorSpec(name="score", dtype="int64", shape=("N",)),), batch="N")
    (output,) = describe(signature=score).config.output
    assert list(output.dims) == [1]
    assert output.HasField("reshape")
    assert list(output.reshape.shape) == []


def test_fields_of_the_yaml_are_laid_over_and_null_removes() -> None:
    given = {
        "dynamic_batching": {"max_queue_delay_microseconds": 500, "preserve_ordering": True},
        "model_warmup": None,
        "version_policy": {"all": {}},
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
    }
    described = describe(fields=given)
    config = fields(described)
    assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == 500
    assert config["dynamic_batching"]["preserve_ordering"] is True
    assert "model_warmup" not in config
    assert set(described.extra) == {"labels.txt"}
    assert config["version_policy"] == {"all": {}}
    assert config["instance_group"][0]["count"] == 2


def test_another_scheduler_takes_the_place_of_dynamic_batching() -> None:
    config = fields(describe(fields={"sequence_batching": {"direct": {}}}))
    assert "dynamic_batching" not in config
    assert "sequence_batching" in config


def test_a_tensor_is_refined_by_name() -> None:
    config = fields(describe(fields={"input": [{"name": "image", "allow_ragged_batch": True}]}))
    assert config["input"][0]["allow_ragged_batch"] is True
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    with pytest.raises(ConfigError, match="no tensor is called 'imge'"):
        describe(fields={"input": [{"name": "imge"}]})


def test_the_text_parses_back_to_the_same_message() -> None:
    described = describe()
    text = described.files["config.pbtxt"].decode()
    assert model_config.parse_text(text, "config.pbtxt") == described.config


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", "TYPE_FP16"), ("int64", "TYPE_INT64"), ("bool", "TYPE_BOOL")]
)
def test_data_types_are_triton_s(dtype: str, expected: str) -> None:
    assert config_pbtxt.data_type(dtype) == expected


def test_a_model_without_a_batch_is_warmed_up_with_one_whole_request() -> None:
    (warmup,) = describe(max_batch_size=0).config.model_warmup
    assert warmup.batch_size == 1  # Triton skips a sample of batch size 0
    assert list(warmup.inputs["image"].dims) == [1, 1, 2, 2]


def test_engines_run_on_a_gpu_and_are_named_by_capability() -> None:
    config = fields(describe(kind="tensorrt_rtx", engines={"8.0": "model_sm80.engine"}))
    assert (config["backend"], config.get("platform", "")) == ("tensorrt_rtx", "")
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert config["cc_model_filenames"] == {"8.0": "model_sm80.engine"}
    config = fields(describe(kind="tensorrt", engines={}, profiles=2))
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "profile": ["0", "1"]}]
    assert (config["backend"], config["platform"]) == ("tensorrt", "tensorrt_plan")
    assert "cc_model_filenames" not in config


def test_instance_groups_of_the_yaml_have_all_profiles_but_where_they_name_some() -> None:
    groups = [{"count": 2, "kind": "KIND_GPU"}, {"count": 1, "kind": "KIND_GPU", "profile": ["1"]}]
    given = {"instance_group": groups}
    config = fields(describe(kind="tensorrt", engines={}, profiles=2, fields=given))
    assert [group["profile"] for group in config["instance_group"]] == [["0", "1"], ["1"]]
    assert [group["count"] for group in config["instance_group"]] == [2, 1]
    assert "profile" not in groups[0]
    config = fields(describe(kind="tensorrt", engines={}, profiles=2, fields={"instance_group": None}))
    assert "instance_group" not in config
