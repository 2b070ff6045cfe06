"""What is said where an engine is to be run and there is no GPU: by the runtime, and by the real server."""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.base.errors import MissingError, SmokeError, StageError
from pipeline.build import loop as building
from pipeline.config.load import load
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.formats.tensorrt import runtime
from pipeline.formats.tensorrt.build import build
from pipeline.formats.tensorrt.runtime import TensorRtRuntime
from pipeline.machine import environment, tensorrt_flavours
from pipeline.report.summary import BuildReport
from pipeline.report.terminal import Terminal
from pipeline.servers.triton import embedded as triton
from tests.gpu.test_build import YAML
from tests.integration.conftest import CONFIGS
from tests.integration.engine_graphs import IMAGES, engine_spec, image_net
from tests.integration.in_process import InProcess
from tests.models.make_models import tensor_text
from tests.unit.formats.tensorrt.fake_tensorrt import Cuda

pytestmark = pytest.mark.skipif(
    environment.probe(Path()).gpu is not None, reason="this machine has a GPU: make test-gpu"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real engine of TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("engine")
    made = build(
        image_net(folder),
        engine_spec(),
        folder,
        timing_cache=None,
        log_path=folder / "engine.log",
        timeout_s=120,
        progress=lambda text, share: None,
    )
    return folder / made.file


def test_an_engine_cannot_be_run_and_what_is_missing_is_said(engine: Path) -> None:
    with pytest.raises(MissingError, match="tensorrt_rtx: an engine cannot be run here") as caught:
        TensorRtRuntime(engine, IMAGES, "tensorrt_rtx")
    # Without the `gpu` extra, its absence comes first.
    assert caught.value.found in (
        "CUDA error 35: CUDA driver version is insufficient for CUDA runtime version",
        "import cuda.bindings.runtime: No module named 'cuda'",
    )
    assert caught.value.hint.endswith("cuda-bindings, on a machine with an NVIDIA GPU and its driver")
    assert caught.value.where == str(engine)


def test_classic_tensorrt_that_is_not_installed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    with pytest.raises(MissingError) as caught:
        TensorRtRuntime(engine, IMAGES, "tensorrt")
    assert "import tensorrt: " in caught.value.found
    assert "pip install tensorrt" in caught.value.hint


@pytest.mark.parametrize(
    ("damage", "reason"), [(lambda data: data, "cudaError 35"), (lambda data: b"x" + data[1:], "magicTag")]
)
def test_the_reason_of_the_real_library_is_kept(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object, reason: str
) -> None:
    """With a CUDA that claims a GPU, the real library opens the engine, and gives none."""
    assert callable(damage)
    (tmp_path / "model.engine").write_bytes(damage(engine.read_bytes()))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Cuda())
    with pytest.raises(StageError, match="tensorrt_rtx: cannot load the engine") as caught:
        TensorRtRuntime(tmp_path / "model.engine", IMAGES, "tensorrt_rtx")
    assert reason in caught.value.found
    assert tensorrt_flavours.installed("tensorrt_rtx") in caught.value.hint


@pytest.mark.parametrize(
    ("backend", "kind", "reason"),
    [
        ("tensorrt", "KIND_CPU", "unable to load model 'm', TensorRT backend supports only GPU device"),
        ("tensorrt_rtx", "KIND_MODEL", "unable to load model 'm', TensorRT backend supports only GPU device"),
        ("tensorrt_rtx", "KIND_GPU", "instance group m_0 of model m has kind KIND_GPU but no GPUs are available"),
    ],
)
def test_the_server_refuses_an_engine(engine: Path, tmp_path: Path, backend: str, kind: str, reason: str) -> None:
    version = tmp_path / "repository" / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.engine").write_bytes(engine.read_bytes())
    fields = [
        f'backend: "{backend}"',
        'platform: "tensorrt_plan"' if backend == "tensorrt" else "",
        "max_batch_size: 8",
        f"input {tensor_text('x', 'float32', [3, 16, 16])}",
        f"output {tensor_text('y', 'float32', [4])}",
        f"instance_group {{ count: 1 kind: {kind} }}",
    ]
    (version.parent / "config.pbtxt").write_text("\n".join(fields))
    served = triton.embedded(tmp_path / "repository", ["m"], log_path=tmp_path / "server.log", start_timeout_s=60)
    with pytest.raises(SmokeError, match="model m did not load") as caught, served:
        pass
    assert caught.value.found == reason


class Digits:
    """In place of the engine's runtime: the source model in ONNX Runtime, and an error added to its answers."""

    error = 0.0
    opened: list[tuple[str, str]] = []  # noqa: RUF012 - of the test that looks at it

    def __init__(self, path: Path, signature: Any, flavour: str) -> None:
        self.opened.append((path.name, flavour))
        self._model = OnnxRuntime(CONFIGS / "models" / "digits.onnx", signature)

    def run(self, inputs: Any) -> dict[str, Any]:
        return {name: array + np.float32(self.error) for name, array in self._model.run(inputs).items()}


@pytest.mark.parametrize("error", [0.0, 5.0])
def test_where_there_is_a_gpu_the_engine_is_judged_after_its_graph(
    error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a build but the GPU: the machine claims one, and another runtime answers for the engine."""
    real = environment.probe
    gpu = environment.Gpu(name="claimed", driver="1", capability="sm_80")
    monkeypatch.setattr(environment, "probe", lambda work_dir: replace(real(work_dir), gpu=gpu, cuda_bindings=True))
    monkeypatch.setattr(building, "Local", InProcess)
    monkeypatch.setattr(runtime, "TensorRtRuntime", Digits)
    monkeypatch.setattr(Digits, "opened", [])
    monkeypatch.setattr(Digits, "error", error)
    shutil.copy(CONFIGS / "models" / "digits.onnx", tmp_path)
    (tmp_path / "m.yaml").write_text(YAML.format(flavour="tensorrt_rtx", gpu="sm_80"))

    def built() -> BuildReport:
        options = building.Options(
            repository=tmp_path / "repository", work_dir=tmp_path / "work", variants=("fp16",), serve=False
        )
        return building.build(load(tmp_path / "m.yaml", ()), options, Terminal(Console(file=io.StringIO())))

    report = built()
    row = report.variants[0]
    steps = list(report.durations_s)
    assert steps[steps.index("engine[digits_fp16]") + 1] == "parity[digits_fp16.engine]"
    assert Digits.opened == [("model_sm80.engine", "tensorrt_rtx")]
    assert row.parity is not None
    assert row.parity.max_abs == pytest.approx(error, abs=1e-4)
    if error:
        assert row.error.startswith("parity[digits_fp16.engine]: refused by a gate")
        assert not list(tmp_path.glob("repository*"))
    else:
        assert (row.error, row.notes) == ("", ())
        again = built().variants[0]
        assert again.cached
        assert again.parity == row.parity
        assert len(Digits.opened) == 1
