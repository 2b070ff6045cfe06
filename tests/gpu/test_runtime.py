"""Engines built and run on this GPU, against ONNX Runtime on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from pipeline.base.errors import StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.formats.tensorrt.build import build
from pipeline.formats.tensorrt.runtime import TensorRtRuntime
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.machine.tensorrt_flavours import FlavourName
from pipeline.precision.table import PRECISIONS
from pipeline.proof.comparison import FP32, compare
from tests.integration.engine_graphs import IMAGES, TOKENS, engine_spec, image_net, saved
from tests.models.make_models import masked_sum_onnx, row_sum_onnx

pytestmark = pytest.mark.gpu

TEXT = Signature(
    inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("N", "L")) for name in ("ids", "mask")),
    outputs=(
        TensorSpec(name="total", dtype="int64", shape=("N", 1)),
        TensorSpec(name="share", dtype="float32", shape=("N", 1)),
    ),
    batch="N",
)
ROWS = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("L", 4)),),
    outputs=(TensorSpec(name="total", dtype="float32", shape=("L",)),),
    batch=None,
)
LARGE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(16,)),),
    outputs=(TensorSpec(name="places", dtype="int64", shape=(1, "K")),),
    batch=None,
)
TWO_LENGTHS = [{"L": [1, 4, 16]}, {"L": [16, 32, 64]}]


def made(source: Path, spec: EngineSpec, timing_cache: Path | None = None) -> Path:
    """Build an engine beside its graph; its path."""
    made = build(
        source,
        spec,
        source.parent,
        timing_cache=timing_cache,
        log_path=source.parent / "engine.log",
        timeout_s=300,
        progress=lambda text, share: None,
    )
    return source.parent / made.file


def asked(flavour: FlavourName, gpu: str, precision: str = "fp32", **changes: Any) -> EngineSpec:
    return engine_spec(precision, flavour=flavour, gpus=(gpu,), **changes)


def written(model: Any, folder: Path) -> Path:
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_at_several_batch_sizes(flavour: FlavourName, gpu: str, precision: str, tmp_path: Path) -> None:
    source = image_net(tmp_path, precision)
    engine = TensorRtRuntime(made(source, asked(flavour, gpu, precision)), IMAGES, flavour)
    reference = OnnxRuntime(source, IMAGES, float_qdq=precision == "int8")
    random = np.random.default_rng(0)
    tolerance = PRECISIONS[precision].tolerance  # fp32's own: the builder is told not to round to TF32
    for size in (1, 3, 8, 1):
        inputs = {"x": random.normal(size=(size, 3, 16, 16)).astype(np.float32)}
        result = compare(engine.run(inputs), reference.run(inputs), tolerance)
        assert result.passed, f"batch {size}: {result.reason}"


def test_two_profiles_serve_two_ranges(flavour: FlavourName, gpu: str, tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    source = saved([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], weights, tmp_path, TOKENS)
    spec = asked(flavour, gpu, signature=TOKENS, given=TWO_LENGTHS)
    engine, reference = TensorRtRuntime(made(source, spec), TOKENS, flavour), OnnxRuntime(source, TOKENS)
    for rows, length in ((1, 1), (8, 64), (3, 16), (8, 17), (2, 5)):
        inputs = {"x": np.random.default_rng(length).normal(size=(rows, length, 8)).astype(np.float32)}
        result = compare(engine.run(inputs), reference.run(inputs), FP32)
        assert result.passed, f"{rows} x {length}: {result.reason}"
    with pytest.raises(StageError, match="no optimization profile takes a sample"):
        engine.run({"x": np.zeros((1, 65, 8), np.float32)})


def test_integers_in_and_out(flavour: FlavourName, gpu: str, tmp_path: Path) -> None:
    source = written(masked_sum_onnx(), tmp_path)
    spec = asked(flavour, gpu, signature=TEXT, given=TWO_LENGTHS)
    engine, reference = TensorRtRuntime(made(source, spec), TEXT, flavour), OnnxRuntime(source, TEXT)
    for rows, length in ((1, 3), (8, 40)):
        random = np.random.default_rng(length)
        inputs = {"ids": random.integers(0, 2**40, (rows, length)), "mask": random.integers(0, 2, (rows, length))}
        result = compare(engine.run(inputs), reference.run(inputs), FP32)
        assert result.passed, result.reason


def test_a_model_without_a_batch_dimension(flavour: FlavourName, gpu: str, tmp_path: Path) -> None:
    source = written(row_sum_onnx(), tmp_path)
    spec = asked(flavour, gpu, signature=ROWS, given=[{"L": [1, 4, 16]}], max_batch_size=0)
    engine = TensorRtRuntime(made(source, spec), ROWS, flavour)
    for length in (1, 16):
        x = np.random.default_rng(length).normal(size=(length, 4)).astype(np.float32)
        np.testing.assert_allclose(engine.run({"x": x})["total"], x.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_a_damaged_engine_is_refused(flavour: FlavourName, gpu: str, tmp_path: Path) -> None:
    path = made(image_net(tmp_path), asked(flavour, gpu))
    path.write_bytes(b"none" + path.read_bytes()[4:])
    with pytest.raises(StageError, match="cannot load the engine"):
        TensorRtRuntime(path, IMAGES, flavour)


@pytest.fixture
def classic(usable: tuple[FlavourName, ...]) -> FlavourName:
    if "tensorrt" not in usable:
        pytest.skip("only for classic TensorRT: pip install tensorrt")
    return "tensorrt"


def test_an_output_whose_size_depends_on_the_data(classic: FlavourName, gpu: str, tmp_path: Path) -> None:
    # TensorRT-RTX 1.7 has no operator of such an output without plugins, which it does not come with.
    source = saved([helper.make_node("NonZero", ["x"], ["places"])], {}, tmp_path, LARGE)
    spec = asked(classic, gpu, signature=LARGE, max_batch_size=0)
    engine = TensorRtRuntime(made(source, spec), LARGE, classic)
    for count in (5, 0, 16):
        x = np.zeros(16, np.float32)
        x[:count] = 1
        assert engine.run({"x": x})["places"].tolist() == [list(range(count))]


@pytest.mark.parametrize(
    "options", [{"hardware_compatibility": "ampere_plus"}, {"version_compatible": True}, {"refit": True}]
)
def test_settings_that_only_classic_tensorrt_has(
    classic: FlavourName, gpu: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source = image_net(tmp_path, "fp16")
    engine = TensorRtRuntime(made(source, asked(classic, gpu, "fp16", **options)), IMAGES, classic)
    inputs = {"x": np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)}
    reference = OnnxRuntime(source, IMAGES).run(inputs)
    assert compare(engine.run(inputs), reference, PRECISIONS["fp16"].tolerance).passed


def test_the_timing_cache_is_kept_and_used_again(classic: FlavourName, gpu: str, tmp_path: Path) -> None:
    source, caches = image_net(tmp_path, "fp16"), tmp_path / "caches"
    made(source, asked(classic, gpu, "fp16"), caches)
    (cache,) = caches.iterdir()
    assert cache.name.endswith(f"-{gpu}.cache")
    size = cache.stat().st_size
    assert size > 0
    made(source, replace(asked(classic, gpu, "fp16"), workspace_bytes=1 << 28), caches)
    assert [item.name for item in caches.iterdir()] == [cache.name]
    assert cache.stat().st_size >= size  # what was timed is still in it


def test_an_engine_for_another_gpu_is_not_built(classic: FlavourName, gpu: str, tmp_path: Path) -> None:
    other = "sm_75" if gpu != "sm_75" else "sm_80"
    with pytest.raises(Exception, match="cannot be used here") as caught:
        made(image_net(tmp_path), asked(classic, other))
    assert f"the GPU here is {gpu}" in str(caught.value)
