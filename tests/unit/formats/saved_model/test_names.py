"""Which of a model's tensors is which of the YAML's."""

from __future__ import annotations

import pytest

from pipeline.base.errors import StageError
from pipeline.base.ports import Port
from pipeline.base.values import TensorSpec
from pipeline.formats.saved_model.names import match, ordered


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def port(name: str, *shape: int | None, dtype: str = "float32") -> Port:
    return Port(name=name, dtype=dtype, shape=shape)


def test_equal_names_are_matched_in_any_order_and_need_no_note() -> None:
    ports = [port("b", None, 2), port("a", None, 2)]
    assert match("inputs", ports, [spec("a", "N", 2), spec("b", "N", 2)], "m") == ({"a": "a", "b": "b"}, "")


def test_the_rest_is_matched_by_order_and_told() -> None:
    ports = [port("first", None, 2), port("b", None, 3), port("last", None, 4)]
    specs = [spec("b", "N", 3), spec("x", "N", 2), spec("y", "N", 4)]
    names, note = match("outputs", ports, specs, "m")
    assert names == {"b": "b", "x": "first", "y": "last"}
    assert note == "outputs without the YAML's names are taken in order: x is its first, y is its last"


def test_a_saved_models_numbered_names_are_in_order() -> None:
    ports = [port(name, None) for name in ("output_10", "output_9", "output_1", "a")]
    assert [item.name for item in ordered(ports)] == ["a", "output_1", "output_9", "output_10"]
    assert [item.name for item in ordered([port("1"), port("b"), port("0_1")])] == ["0_1", "1", "b"]


def test_every_difference_is_told() -> None:
    ports = [port("x", None, 4, dtype="string"), port("z", 1, 2)]
    with pytest.raises(StageError, match="the model's inputs are not the YAML's") as caught:
        match("inputs", ports, [spec("x", "N", 4), spec("y", "N", 2)], "m.keras")
    assert caught.value.found.splitlines() == [
        "input x is string; the YAML says float32",
        "input y (its z) has shape [1, 2]; the YAML says [N, 2]",
    ]
    assert caught.value.where == "m.keras"


def test_another_number_is_told_with_what_there_is() -> None:
    with pytest.raises(StageError, match="the model has 2 outputs, the YAML 1") as caught:
        match("outputs", [port("x", None, 4), Port(name="y", dtype="int64", shape=None)], [spec("x", "N", 4)], "m")
    assert caught.value.found == "the model's are x float32[?, 4], y int64"


def test_a_dynamic_size_or_an_unknown_rank_admits_any() -> None:
    specs = [spec("x", "N", 4), spec("y", "N", 4, 4)]
    ports = [port("x", None, None), Port(name="y", dtype="float32", shape=None)]
    assert match("inputs", ports, specs, "m")[1] == ""
    with pytest.raises(StageError):
        match("inputs", [port("x", None, None, None), ports[1]], specs, "m")
