from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import ConfigError, StageError
from pipeline.base.values import GoldenSamples, Sample, Signature, TensorSpec
from pipeline.formats.tensorrt.engine_session import OptimizationProfile
from pipeline.formats.tensorrt.profiles import check, problems, resolve
from pipeline.formats.tensorrt.spec import EngineSpec


def signature(*shapes: tuple[int | str, ...], batch: str | None = "N") -> Signature:
    inputs = tuple(TensorSpec(name=f"x{index}", dtype="float32", shape=shape) for index, shape in enumerate(shapes))
    return Signature(inputs=inputs, outputs=(), batch=batch)


IMAGE = signature(("N", 3, 8, 8))
TEXT = signature(("N", "L"), ("N", "L", 4))


def test_the_batch_has_a_range_by_itself() -> None:
    (profile,) = resolve(IMAGE, (), 8)
    assert profile == {"x0": OptimizationProfile(min=(1, 3, 8, 8), opt=(8, 3, 8, 8), max=(8, 3, 8, 8))}


def test_equal_letters_are_equal_sizes_in_every_input_and_profile() -> None:
    first, second = resolve(TEXT, [{"L": [1, 16, 64]}, {"N": [1, 2, 16], "L": [64, 64, 128]}], 8)
    assert first["x0"] == OptimizationProfile(min=(1, 1), opt=(8, 16), max=(8, 64))
    assert first["x1"] == OptimizationProfile(min=(1, 1, 4), opt=(8, 16, 4), max=(8, 64, 4))
    assert second["x1"] == OptimizationProfile(min=(1, 64, 4), opt=(2, 64, 4), max=(16, 128, 4))


def test_a_static_model_has_one_profile_of_its_own_shapes() -> None:
    (profile,) = resolve(signature((1, 4), batch=None), (), 0)
    assert profile == {"x0": OptimizationProfile(min=(1, 4), opt=(1, 4), max=(1, 4))}


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ([], (), "expected a profile with [min, opt, max] for L"),
        ([{"N": [1, 2, 8]}], (0,), "expected [min, opt, max] for L"),
        ([{"L": [1, 2, 4]}, {"L": [4, 2, 8]}], (1, "L"), "expected min <= opt <= max; found [4, 2, 8]"),
        ([{"L": [1, 9, 8]}], (0, "L"), "expected min <= opt <= max; found [1, 9, 8]"),
        ([{"L": [1, 8]}], (0, "L"), "expected [min, opt, max], three sizes of at least 1; found [1, 8]"),
        ([{"L": [0, 8, 8]}], (0, "L"), "expected [min, opt, max], three sizes of at least 1; found [0, 8, 8]"),
        ([{"L": [1, 8, 8], "M": [1, 2, 3]}], (0, "M"), "no input has a dimension M; the dynamic dimensions are N, L"),
        (
            [{"L": [1, 8, 8], "N": [2, 8, 8]}],
            (0, "N"),
            "a lone request has batch 1: expected min 1 for the batch dimension N; found 2",
        ),
        ([{"L": [1, 8, 8], "N": [1, 4, 4]}], (0, "N"), "max_batch_size is 8: expected max N of at least that; found 4"),
    ],
)
def test_each_problem_is_told_with_its_key(given: Any, key: tuple[Any, ...], message: str) -> None:
    assert problems(TEXT, given, 8) == [(key, message)]
    with pytest.raises(ConfigError, match="not possible") as raised:
        resolve(TEXT, given, 8)
    assert message in raised.value.found


def test_without_batching_by_the_server_the_letter_is_like_any_other() -> None:
    assert problems(IMAGE, [], 0) == [((), "expected a profile with [min, opt, max] for N")]
    assert problems(IMAGE, [{"N": [2, 2, 4]}], 0) == []
    assert problems(signature((1, 4), batch=None), [{"N": [1, 1, 1]}], 0) == [
        ((0, "N"), "no input has a dimension N; no dimension is dynamic")
    ]


def test_a_golden_sample_outside_of_all_profiles_is_told_with_its_place() -> None:
    given = [{"L": [1, 4, 16]}, {"L": [64, 64, 64]}]
    spec = EngineSpec(
        flavour="tensorrt", precision="fp32", signature=TEXT, max_batch_size=8, profiles=resolve(TEXT, given, 8)
    )  # fmt: skip

    def golden(*lengths: int) -> GoldenSamples:
        rows = [{"x0": np.zeros((1, size)), "x1": np.zeros((1, size, 4))} for size in lengths]
        return GoldenSamples(samples=tuple(Sample(inputs=row, outputs={}) for row in rows), batched=True, sha256="")

    check(golden(1, 16, 64), spec, "m.yaml:7:3")
    with pytest.raises(StageError, match="tensorrt: no optimization profile takes a sample") as caught:
        check(golden(16, 40), spec, "m.yaml:7:3")
    assert caught.value.found.splitlines()[::2] == [
        "profile 0, x0: model expected the shape of dimension 1 to be between 1 and 16 but received 40",
        "profile 1, x0: model expected the shape of dimension 1 to be between 64 and 64 but received 40",
    ]
    assert caught.value.where == "m.yaml:7:3"
    assert "widen `engine.profiles`" in caught.value.hint
