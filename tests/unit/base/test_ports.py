"""What counts as a difference between ports and the signature."""

from __future__ import annotations

import pytest

from pipeline.base.ports import Difference, Port, Shape, differences, same_names
from pipeline.base.values import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("N", 3))
Y = TensorSpec(name="y", dtype="int64", shape=("N",))


def port(name: str = "x", dtype: str = "float32", shape: Shape | None = ("N", 3)) -> Port:
    return Port(name=name, dtype=dtype, shape=shape)


@pytest.mark.parametrize("shape", [("N", 3), ("other", 3), (None, 3), (-1, 3)])
def test_a_dynamic_dimension_has_no_name_of_its_own(shape: Shape) -> None:
    for exact in (True, False):
        assert list(differences([port(shape=shape)], [X], exact=exact)) == []


@pytest.mark.parametrize(("shape", "found"), [((2, 3), "[2, 3]"), (("N", 4), "[N, 4]"), ((None, 3, 1), "[?, 3, 1]")])
def test_a_fixed_size_or_another_rank_is_a_difference(shape: Shape, found: str) -> None:
    for exact in (True, False):
        (item,) = differences([port(shape=shape)], [X], exact=exact)
        assert item == Difference(name="x", kind="shape", expected="[N, 3]", found=found)


@pytest.mark.parametrize("shape", [("N", "M"), (None, None), (-1, -1)])
def test_a_dimension_that_is_not_known_admits_a_size_unless_it_must_be_exact(shape: Shape) -> None:
    assert list(differences([port(shape=shape)], [X])) == []
    assert [item.kind for item in differences([port(shape=shape)], [X], exact=True)] == ["shape"]


def test_names_and_dtypes_are_told_and_an_unknown_rank_fits() -> None:
    found = list(differences([port("z"), port("y", "int32", None)], [X, Y]))
    assert [(item.name, item.kind) for item in found] == [("z", "unknown"), ("x", "missing"), ("y", "dtype")]
    assert found[-1].told("output y") == "output y is int32; the YAML says int64"
    assert same_names(["y", "x"], [X, Y])
    assert not same_names(["y", "x", "z"], [X, Y])
