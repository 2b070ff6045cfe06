"""Running engines, against a stand-in for TensorRT and CUDA: what this machine has no GPU to show."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pipeline.base.errors import MissingError, StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.tensorrt import engine_session
from pipeline.formats.tensorrt.engine_session import OptimizationProfile, fitting, misfit
from pipeline.formats.tensorrt.runtime import TensorRtRuntime

from .fake_tensorrt import PLAN, Cuda, Engine, Port, install

TEXT = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("N", "L")),
        TensorSpec(name="mask", dtype="bool", shape=("N", "L")),
    ),
    outputs=(
        TensorSpec(name="kept", dtype="int64", shape=("N", "L")),
        TensorSpec(name="share", dtype="float16", shape=("N",)),
    ),
    batch="N",
)
SPANS = (((1, 1), (4, 4), (8, 8)), ((1, 8), (8, 16), (8, 32)))


def text_engine(**changes: Any) -> Engine:
    """ids where the mask is true, and the share of true ones; lengths 1 to 8 and 8 to 32."""
    return Engine(
        [Port("mask", "BOOL", (-1, -1), SPANS), Port("ids", "INT64", (-1, -1), SPANS)._replace(**changes)],
        [Port("share", "HALF", (-1,)), Port("kept", "INT64", (-1, -1))],
        lambda ids, mask: {"kept": ids * mask, "share": mask.mean(axis=1)},
    )


def opened(patch: pytest.MonkeyPatch, folder: Path, engine: Engine, signature: Signature = TEXT) -> TensorRtRuntime:
    install(patch, engine)
    (folder / "model.plan").write_bytes(PLAN)
    return TensorRtRuntime(folder / "model.plan", signature, "tensorrt")


def inputs(rows: int, length: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    return {"ids": random.integers(0, 99, (rows, length)), "mask": random.random((rows, length)) > 0.5}


def test_several_shapes_through_their_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = text_engine()
    runtime = opened(monkeypatch, tmp_path, engine)
    for rows, length in ((8, 5), (1, 30), (2, 1), (8, 32), (3, 7)):
        given = inputs(rows, length)
        answer = runtime.run(given)
        assert list(answer) == ["kept", "share"]
        assert_array_equal(answer["kept"], given["ids"] * given["mask"])
        assert_array_equal(answer["share"], given["mask"].mean(axis=1).astype(np.float16))
    assert [context.profile for context in engine.contexts] == [0, 1]


def test_a_view_that_is_not_contiguous(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = opened(monkeypatch, tmp_path, text_engine())
    given = inputs(4, 6)
    turned = {name: np.asfortranarray(array) for name, array in given.items()}
    assert_array_equal(runtime.run(turned)["kept"], given["ids"] * given["mask"])


def test_a_model_without_a_batch_dimension_and_a_scalar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(3,)), TensorSpec(name="by", dtype="int32", shape=())),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(3,)),),
        batch=None,
    )
    engine = Engine(
        [Port("x", "FLOAT", (3,)), Port("by", "INT32", ())], [Port("y", "FLOAT", (3,))], lambda x, by: {"y": x * by}
    )
    runtime = opened(monkeypatch, tmp_path, engine, signature)
    answer = runtime.run({"x": np.arange(3, dtype=np.float32), "by": np.array(5, np.int32)})
    assert_array_equal(answer["y"], [0, 5, 10])
    assert engine.contexts[0].shapes == {"x": (3,), "by": ()}


def test_an_output_whose_size_depends_on_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(4,)),),
        outputs=(TensorSpec(name="large", dtype="float32", shape=("K",)),),
        batch=None,
    )
    engine = Engine([Port("x", "FLOAT", (4,))], [Port("large", "FLOAT", (-2,))], lambda x: {"large": x[x > 1]})
    runtime = opened(monkeypatch, tmp_path, engine, signature)
    for values in ([0, 2, 1, 3], [0, 0, 0, 0], [4, 5, 6, 7]):
        x = np.array(values, np.float32)
        assert_array_equal(runtime.run({"x": x})["large"], x[x > 1])


def test_memory_grows_is_used_again_and_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = opened(monkeypatch, tmp_path, text_engine())
    cuda = sys.modules["cuda.bindings.runtime"]
    assert isinstance(cuda, Cuda)
    runtime.run(inputs(8, 8))
    sizes = sorted(len(buffer) for buffer in cuda.memory.values())
    assert sizes == [16, 64, 512, 512]
    runtime.run(inputs(1, 2))
    assert sorted(len(buffer) for buffer in cuda.memory.values()) == sizes
    runtime.run(inputs(8, 32))
    assert sorted(len(buffer) for buffer in cuda.memory.values()) == [16, 256, 2048, 2048]
    assert (cuda.device, cuda.streams) == (0, 1)
    del runtime
    gc.collect()
    assert (cuda.memory, cuda.streams) == ({}, 0)


def test_shapes_that_no_profile_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = opened(monkeypatch, tmp_path, text_engine())
    with pytest.raises(StageError, match="no optimization profile takes a sample") as caught:
        runtime.run(inputs(2, 33))
    assert caught.value.found.splitlines()[::2] == [
        "profile 0, ids: model expected the shape of dimension 1 to be between 1 and 8 but received 33",
        "profile 1, ids: model expected the shape of dimension 1 to be between 8 and 32 but received 33",
    ]
    assert "engine.profiles" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"kind": "INT32"}, "input ids is int64; the engine takes int32"),
        ({"kind": "BF16"}, "ids is of type BF16"),
        ({"is_shape": True}, "ids is a shape tensor"),
        ({"layout": "CHW4"}, "ids is not in row-major order"),
    ],
)
def test_an_input_that_cannot_be_fed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: Any, found: str) -> None:
    runtime = opened(monkeypatch, tmp_path, text_engine(**changes))
    with pytest.raises(StageError, match="the engine failed on a sample") as caught:
        runtime.run(inputs(2, 3))
    assert found in caught.value.found
    assert caught.value.hint == "inputs were ids int64[2, 3], mask bool[2, 3]"


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize"])
def test_a_failure_of_cuda_and_life_after_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str) -> None:
    engine = text_engine()
    runtime = opened(monkeypatch, tmp_path, engine)
    cuda = sys.modules["cuda.bindings.runtime"]
    assert isinstance(cuda, Cuda)
    cuda.failing[call] = 2
    with pytest.raises(StageError) as caught:
        runtime.run(inputs(2, 3))
    assert caught.value.found == "CUDA error 2: the reason"
    cuda.failing.clear()
    assert runtime.run(inputs(2, 3))["kept"].shape == (2, 3)


def test_a_failure_of_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = text_engine()
    engine.works = False
    with pytest.raises(StageError) as caught:
        opened(monkeypatch, tmp_path, engine).run(inputs(2, 3))
    assert caught.value.found == "the engine was not run: TensorRT gave no reason"


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("infer_shapes", "the shapes are not known: infer_shapes error code: -1: TensorRT gave no reason"),
        ("set_optimization_profile_async", "profile 0 cannot be used: Error in set optimization profile async.: "),
    ],
)
def test_what_the_bindings_raise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, found: str) -> None:
    engine = text_engine()
    engine.raising.add(call)
    runtime = opened(monkeypatch, tmp_path, engine)
    with pytest.raises(StageError, match="the engine failed on a sample") as caught:
        runtime.run(inputs(2, 3))
    assert caught.value.found.startswith(found)
    engine.raising.clear()
    assert runtime.run(inputs(2, 3))["kept"].shape == (2, 3)


def test_an_engine_the_library_does_not_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, text_engine())
    (tmp_path / "model.plan").write_bytes(PLAN[:-1])
    with pytest.raises(StageError, match="cannot load the engine") as caught:
        TensorRtRuntime(tmp_path / "model.plan", TEXT, "tensorrt")
    assert caught.value.found == "the plan was made by another version"
    assert all(word in caught.value.hint for word in ("version", "GPU", "damaged", "build it again"))
    assert caught.value.where == str(tmp_path / "model.plan")


@pytest.mark.parametrize("status", [35, 100])
def test_no_driver_or_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int) -> None:
    install(monkeypatch, text_engine()).failing["cudaSetDevice"] = status
    (tmp_path / "model.plan").write_bytes(PLAN)
    with pytest.raises(MissingError, match="cannot be run here") as caught:
        TensorRtRuntime(tmp_path / "model.plan", TEXT, "tensorrt")
    assert caught.value.found == f"CUDA error {status}: the reason"
    assert caught.value.hint == "pip install tensorrt cuda-bindings, on a machine with an NVIDIA GPU and its driver"


@pytest.mark.parametrize("module", ["cuda.bindings.runtime", "tensorrt"])
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str) -> None:
    install(monkeypatch, text_engine())
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    (tmp_path / "model.plan").write_bytes(PLAN)
    with pytest.raises(MissingError) as caught:
        TensorRtRuntime(tmp_path / "model.plan", TEXT, "tensorrt")
    assert caught.value.found.startswith(f"import {module}: ")


def test_names_that_are_not_the_signatures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="tensorrt: the file's inputs are not the configuration's") as caught:
        opened(monkeypatch, tmp_path, text_engine(name="tokens"))
    assert caught.value.found == "mask, tokens; expected ids, mask"


def test_the_bindings_alone_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, text_engine(), "tensorrt_rtx_bindings")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    (tmp_path / "model.engine").write_bytes(PLAN)
    assert TensorRtRuntime(tmp_path / "model.engine", TEXT, "tensorrt_rtx").run(inputs(1, 1))["kept"].shape == (1, 1)


def test_the_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch, text_engine())
    assert engine_session.compute_capability(3) == "8.9"
    assert cuda.device == 3


SPAN = OptimizationProfile((1, 4), (4, 8), (8, 16))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 4), ""),
        ((8, 16), ""),
        ((-1, 16), ""),
        ((0, 4), "model expected the shape of dimension 0 to be between 1 and 8 but received 0"),
        ((8, 17), "model expected the shape of dimension 1 to be between 4 and 16 but received 17"),
        ((8,), "model expected 2 dimensions but received 1 dimensions"),
    ],
)
def test_shapes_and_ranges(shape: tuple[int, ...], expected: str) -> None:
    assert misfit(shape, SPAN) == expected


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (7, 0), (9, 2), (16, 2), (17, 1), (64, 1), (65, None)])
def test_the_nearest_profile_that_fits(size: int, expected: int | None) -> None:
    spans = {0: ((1,), (4,), (8,)), 1: ((1,), (64,), (64,)), 2: ((8,), (10,), (16,))}
    profiles = {index: {"x": OptimizationProfile(*span)} for index, span in spans.items()}
    assert fitting(profiles, {"x": (size,)}) == expected
