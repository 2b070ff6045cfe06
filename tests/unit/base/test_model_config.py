"""ModelConfig: every field reachable, nothing else accepted, text that reads back to the same message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base import model_config
from pipeline.base.errors import ConfigError

FULL: dict[str, Any] = {
    "name": "net",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "version_policy": {"specific": {"versions": [3, 5]}},
    "input": [{"name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, -1, 8]}],
    "output": [{"name": "é", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}}],
    "instance_group": [{"kind": "KIND_CPU", "count": 2}],
    "dynamic_batching": {"max_queue_delay_microseconds": 500, "default_queue_policy": {"max_queue_size": 10}},
    "parameters": {"b": {"string_value": "2"}, "a": {"string_value": "1"}},
}


def test_text_reads_back_to_the_message() -> None:
    config = model_config.build(FULL)
    text = model_config.to_text(config)
    assert model_config.parse_text(text, "x") == config
    assert "dims: [3, -1, 8]" in text
    assert 'name: "é"' in text
    assert text.index('key: "a"') < text.index('key: "b"')  # the same bytes whatever the order in the YAML
    assert model_config.to_text(model_config.build(dict(reversed(FULL.items())))) == text


def test_to_dict_keeps_the_proto_names_and_builds_again() -> None:
    config = model_config.build(FULL)
    values = model_config.to_dict(config)
    assert values["max_batch_size"] == 8
    assert values["input"][0]["data_type"] == "TYPE_FP32"
    assert values["dynamic_batching"]["default_queue_policy"] == {"max_queue_size": 10}


def test_none_leaves_a_field_unset() -> None:
    assert model_config.build({"name": "a", "dynamic_batching": None}) == model_config.build({"name": "a"})


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"maxBatchSize": 1}, ("maxBatchSize",), "did you mean `max_batch_size`?"),
        ({"zzz": 1}, ("zzz",), "known here: name, platform"),
        ({"input": [{"name": "a"}, {"dimz": [1]}]}, ("input", 1, "dimz"), "did you mean `dims`?"),
        ({"dynamic_batching": {"max_queue_delay": 1}}, ("dynamic_batching", "max_queue_delay"), "no such field"),
        ({"model_warmup": [{"inputs": {"x": {"dim": [1]}}}]}, ("model_warmup", 0, "inputs", "x", "dim"), "`dims`?"),
    ],
)
def test_unknown_fields_are_found_at_their_path(
    fields: dict[str, Any], path: tuple[str | int, ...], message: str
) -> None:
    ((found, text),) = model_config.unknown_fields(fields)
    assert found == path
    assert message in text
    assert model_config.wrong_values(fields) == []
    with pytest.raises(ConfigError, match="these fields make no ModelConfig"):
        model_config.build(fields)


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"max_batch_size": "8"}, ("max_batch_size",), "expected an integer of 32 bits; found '8'"),
        ({"max_batch_size": True}, ("max_batch_size",), "expected an integer of 32 bits; found True"),
        ({"max_batch_size": 2**31}, ("max_batch_size",), "expected an integer of 32 bits"),
        ({"input": {"name": "x"}}, ("input",), "expected a list; found {'name': 'x'}"),
        ({"input": [None]}, ("input", 0), "expected a mapping with name, data_type"),
        ({"input": [{"dims": ["a"]}]}, ("input", 0, "dims", 0), "expected an integer of 64 bits; found 'a'"),
        ({"input": [{"optional": 1}]}, ("input", 0, "optional"), "expected true or false; found 1"),
        ({"instance_group": [{"kind": "CPU"}]}, ("instance_group", 0, "kind"), "expected one of KIND_AUTO, KIND_GPU"),
        ({"dynamic_batching": 5}, ("dynamic_batching",), "expected a mapping with preferred_batch_size"),
        ({"dynamic_batching": {"max_queue_delay_microseconds": -1}},
         ("dynamic_batching", "max_queue_delay_microseconds"), "expected an integer >= 0 of 64 bits; found -1"),
        ({"parameters": {"a": "1"}}, ("parameters", "a"), "expected a mapping with string_value; found '1'"),
        ({"parameters": {"a": {"string_value": 1}}}, ("parameters", "a", "string_value"), "text (in quotes); found 1"),
        ({"metric_tags": {"a": 1}}, ("metric_tags", "a"), "expected text (in quotes); found 1"),
        ({"metric_tags": []}, ("metric_tags",), "expected a mapping; found []"),
        ({"version_policy": {"latest": {}, "all": {}}}, ("version_policy", "all"),
         "only one of these may be given: latest, all"),
        ({"optimization": {"priority": "x"}}, ("optimization", "priority"), "expected one of PRIORITY_DEFAULT"),
    ],
)  # fmt: skip
def test_wrong_values_are_found_at_their_path(
    fields: dict[str, Any], path: tuple[str | int, ...], message: str
) -> None:
    ((found, text),) = model_config.wrong_values(fields)
    assert found == path
    assert message in text
    assert model_config.unknown_fields(fields) == []
    with pytest.raises(ConfigError):
        model_config.build(fields)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ('name: "a"\nfoo: 3\n', "m/config.pbtxt:2:1", 'has no field named "foo"'),
        ('name: "a\n', "m/config.pbtxt:1:7", "missing ending quote"),
        ("max_batch_size: 99999999999\n", "m/config.pbtxt:1:17", "out of range"),
        ("input [{ name: 'x' ", "m/config.pbtxt:1:16", "Expected"),
        ("${name}", "m/config.pbtxt:1:1", "$"),
    ],
)
def test_text_errors_name_line_and_column(text: str, where: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config.parse_text(text, "m/config.pbtxt")
    assert caught.value.where == where
    assert message in caught.value.found
    assert not caught.value.found.startswith("2:1")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="name: \"a{}[]<>\\x'3,;#\n-\x00é", max_size=40))
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    try:
        model_config.to_text(model_config.parse_text(text, "x"))
    except ConfigError as error:
        assert error.where.startswith("x")  # noqa: PT017 - most texts are refused, some are not


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, [12]),
        ({}, [1, 3, 12]),
        ({"latest": {}}, []),
        ({"latest": {"num_versions": 2}}, [3, 12]),
        ({"latest": {"num_versions": 9}}, [1, 3, 12]),
        ({"all": {}}, [1, 3, 12]),
        ({"specific": {"versions": [12, 1, 7]}}, [1, 12]),
    ],
)
def test_served_versions(policy: dict[str, Any] | None, expected: list[int]) -> None:
    config = model_config.build({"version_policy": policy})
    assert model_config.served_versions(config, [12, 1, 3]) == expected
    assert model_config.served_versions(config, []) == []
