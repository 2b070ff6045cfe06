"""The schema: what it takes and refuses by itself, and that every rule of it has words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from pipeline.config.explain import PATTERNS
from pipeline.config.load import json_schema
from pipeline.schema import Config
from pipeline.schema.model import Checkpoint, Data, Model, Samples, Source
from pipeline.schema.serving import Triton
from pipeline.schema.variants import Engine, Variant

GOOD: dict[str, Any] = {
    "name": "net",
    "source": {"model": {"callable": "net.py:make"}},
    "inputs": {"x": {"shape": ["N", 4]}},
    "outputs": {"y": {"shape": ["N", 2]}},
    "samples": {"from": {"arrays": "x.npz"}},
    "variants": {"onnx": {"format": "onnx"}, "copy": {"from": "onnx"}},
}


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for child in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _nodes(child)


def test_every_pattern_of_the_schema_has_words() -> None:
    patterns = {node["pattern"] for node in _nodes(json_schema()) if isinstance(node.get("pattern"), str)}
    patterns |= {key for node in _nodes(json_schema()) for key in node.get("patternProperties", ())}
    assert len(patterns) >= 4
    assert patterns == set(PATTERNS)


def test_the_json_schema_accepts_and_refuses_like_the_model() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    assert Config.model_validate(GOOD, strict=False).variants["copy"].from_ == "onnx"
    validator.validate(GOOD)
    for change in ({"nane": "x"}, {"name": "a b"}, {"variants": {}}, {"inputs": {"x": {"shape": ["n"]}}}):
        assert not validator.is_valid({**GOOD, **change}), change


def test_defaults() -> None:
    config = Config.model_validate({key: value for key, value in GOOD.items() if key != "samples"}, strict=False)
    assert (config.samples.from_, config.samples.count, config.samples.seed) == ("data.test", 128, 0)
    assert (config.triton.target, config.triton.max_batch_size) == ("24.10", None)
    assert config.serve.engine == "embedded"


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (Source, {}, "of train, checkpoint, model, onnx, torchscript, keras, saved_model; found none"),
        (Source, {"keras": {}}, "expected exactly one of file, train; found none"),
        (Source, {"keras": {"file": "m.h5", "train": None, "code": True}}, "code"),
        (Source, {"onnx": {"file": "a"}, "torchscript": {"file": "b"}}, "found onnx, torchscript"),
        (Model, {"library": "timm"}, "a library model needs `name`"),
        (Model, {"callable": "a:b", "name": "c"}, "`name` and `weights` belong to a library model"),
        (Model, {"library": "timm", "callable": "a:b"}, "expected exactly one of library, callable"),
        (Data, {}, "expected exactly one of dataset, images, arrays, callable; found none"),
        (Checkpoint, {"file": "a.pt"}, "`model` is needed"),
        (Samples, {"from": "data.train"}, "found 'data.train'"),
        (Variant, {}, "expected `format` (onnx, torchscript, tensorrt, saved_model or libtorch), or `from`"),
        (Variant, {"format": "onnx", "method": "trace"}, "`method` belongs to `format: torchscript`"),
        (Variant, {"format": "torchscript", "opset": 17}, "`opset` belongs to `format: onnx`"),
        (Variant, {"format": "onnx", "from": "a", "opset": 17}, "`opset` is set where the file is made"),
        (Triton, {"target": "24.13"}, "target"),
        (Engine, {"workspace_bytes": 0}, "greater than or equal to 1"),
        (Engine, {"workspace_bytes": 2**50 + 1}, "less than or equal to 1125899906842624"),
    ],
)
def test_rules_within_a_section(section: type, value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate(value)  # type: ignore[attr-defined]
    assert message in str(caught.value)


def test_triton_keeps_any_model_config_field() -> None:
    triton = Triton.model_validate({"max_batch_size": 4, "dynamic_batching": {}, "metric_tags": {"a": "b"}})
    assert triton.model_config_fields == {"dynamic_batching": {}, "metric_tags": {"a": "b"}}


def test_a_whole_pickle_needs_consent_and_no_architecture() -> None:
    assert Checkpoint.model_validate({"file": "a.pt", "allow_pickle": True}).model is None
