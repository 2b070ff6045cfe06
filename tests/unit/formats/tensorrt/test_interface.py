from dataclasses import replace

import pytest

from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.tensorrt.interface import Port, problems
from pipeline.formats.tensorrt.profiles import resolve
from pipeline.formats.tensorrt.spec import EngineSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("N", "L")),
        TensorSpec(name="x", dtype="float32", shape=("N", 3)),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)),),
    batch="N",
)
SPEC = EngineSpec(
    flavour="tensorrt_rtx",
    precision="fp32",
    signature=SIGNATURE,
    max_batch_size=4,
    profiles=resolve(SIGNATURE, [{"L": [1, 2, 4]}, {"L": [4, 8, 8]}], 4),
)
IDS, X, Y = (
    Port(name="ids", dtype="int64", shape=(-1, -1), profiles=tuple(item["ids"] for item in SPEC.profiles)),
    Port(name="x", dtype="float32", shape=(-1, 3)),
    Port(name="y", dtype="float32", shape=(-1, 2)),
)


def test_the_order_does_not_matter_and_an_output_may_be_less_known() -> None:
    assert problems([X, IDS], [Y], SPEC) == []
    assert problems([X, IDS], [replace(Y, shape=(-1, -1))], SPEC) == []


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (replace(X, name="z"), Y, "expected the inputs ids, x; found ids, z"),
        (replace(X, dtype="float16"), Y, "input x: expected float32; found float16"),
        (replace(X, shape=(1, 3)), Y, "input x: expected shape [N, 3]; found [1, 3]"),
        (replace(X, shape=(-1, -1)), Y, "input x: expected shape [N, 3]; found [-1, -1]"),
        (X, replace(Y, shape=(-1, 3)), "output y: expected shape [N, 2]; found [-1, 3]"),
        (X, replace(Y, shape=(4, 2)), "output y: expected shape [N, 2]; found [4, 2]"),
        (X, replace(Y, shape=(-1, 2, 1)), "output y: expected shape [N, 2]; found [-1, 2, 1]"),
        (X, replace(Y, name="z"), "expected the outputs y; found z"),
    ],
)
def test_each_difference_is_told(x: Port, y: Port, expected: str) -> None:
    assert problems([IDS, x], [y], SPEC) == [expected]


def test_profiles_that_are_not_those_asked_for_are_told() -> None:
    one = replace(IDS, profiles=IDS.profiles[:1])
    assert problems([one, X], [Y], SPEC) == [
        "input ids: expected profiles [1, 1] [4, 2] [4, 4]; [1, 4] [4, 8] [4, 8]; found [1, 1] [4, 2] [4, 4]"
    ]
