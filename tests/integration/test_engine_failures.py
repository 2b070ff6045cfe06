"""Every way in which no engine is made: by the graph, the settings, the library, the machine."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from pipeline.base.errors import MissingError, StageError
from pipeline.base.values import Signature
from pipeline.formats.tensorrt import plan_file
from pipeline.machine import tensorrt_flavours
from tests.integration.engine_graphs import IMAGES, built, engine_spec, image_net, refused, saved


def library(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, module: str = "tensorrt_rtx") -> None:
    """Put a module before the real ones on the child's path."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_an_operator_tensorrt_lacks_is_told_per_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unique", ["x"], ["u"], name="first_unique"),
        helper.make_node("Shape", ["u"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["m"]),
        helper.make_node("Add", ["m", "f"], ["y"]),
    ]
    error = refused(saved(nodes, {"w": np.ones((768, 4), np.float32)}, tmp_path), engine_spec())
    assert isinstance(error, StageError)
    assert error.what == "engine: the parser refused 1 node"
    assert error.found.startswith("first_unique (Unique): ")
    assert error.hint == "Unique: write the model without this operator, or serve the variant as `format: onnx`"


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    assert refused(tmp_path / "model.onnx", engine_spec()).what == "engine: the ONNX file cannot be read"


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ({"dtype": "int64"}, {}, "input x: expected int64; found float32"),
        ({"shape": ("N", 3, 16, 32)}, {}, "input x: expected shape [N, 3, 16, 32]; found [-1, 3, 16, 16]"),
        ({}, {"shape": ("N", 5)}, "output y: expected shape [N, 5]; found [-1, 4]"),
        ({}, {"name": "z"}, "expected the outputs z; found y"),
    ],
)
def test_inputs_and_outputs_that_are_not_the_models(inputs: Any, outputs: Any, expected: str, tmp_path: Path) -> None:
    signature = Signature(
        inputs=(replace(IMAGES.inputs[0], **inputs),), outputs=(replace(IMAGES.outputs[0], **outputs),), batch="N"
    )
    error = refused(image_net(tmp_path), engine_spec(signature=signature))
    assert (error.what, error.found) == ("engine: the graph's inputs and outputs are not the model's", expected)


@pytest.mark.parametrize(
    ("precision", "changes", "text"),
    [
        ("fp32", {"gpus": ("sm_90",)}, "sm_90: unsupported by this flavour (tensorrt_rtx): it builds for sm_75, sm_80"),
        ("fp32", {"gpus": ("sm_99",)}, "sm_99: unsupported by this flavour"),
        ("bf16", {"gpus": ("sm_75",)}, "bf16 on sm_75: unsupported by this flavour"),
        ("fp32", {"refit": True}, "refit: unsupported by this flavour"),
    ],
)
def test_what_the_flavour_lacks_is_refused_without_a_build(
    precision: str, changes: Any, text: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="unsupported") as caught:
        built(image_net(tmp_path, precision), engine_spec(precision, **changes))
    assert caught.value.found.startswith(text)
    assert not (tmp_path / "engine.log").exists()


@pytest.mark.parametrize(
    ("precision", "reason"), [("fp32", "FP32 GEMM is not supported"), ("bf16", "HW-specific datatypes: b16")]
)
def test_the_facts_about_turing_are_still_true(
    precision: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_flavours, "refusals", lambda *args, **options: [])
    error = refused(image_net(tmp_path, precision), engine_spec(precision, gpus=("sm_75",)))
    assert error.what == "engine: unsupported by this flavour (tensorrt_rtx)"
    assert reason in error.found


def test_an_fp32_product_in_an_fp16_engine_for_turing_is_told_with_the_way_out(tmp_path: Path) -> None:
    weights = {"w": np.ones((768, 4), np.float32), "v": np.ones((4, 4), np.float16)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["kept"], name="kept"),
        helper.make_node("Cast", ["kept"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "v"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    error = refused(saved(nodes, weights, tmp_path), engine_spec("fp16", kept_nodes=("kept",), gpus=("sm_75", "sm_80")))
    assert error.what == "engine: unsupported by this flavour (tensorrt_rtx)"
    assert error.hint.startswith("remove sm_75 from `engine.gpus`")


def test_int8_that_the_library_turns_to_float_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turing again: the graph is int8, the builder succeeds, and its convolutions are Float."""
    monkeypatch.setattr(tensorrt_flavours, "refusals", lambda *args, **options: [])
    weights = {"w": np.ones((4, 3, 16, 16), np.float32), "s": np.float32(0.02), "z": np.int8(0)}
    nodes = [
        *(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}q"]) for name in ("x", "w")),
        *(helper.make_node("DequantizeLinear", [f"{name}q", "s", "z"], [f"{name}d"]) for name in ("x", "w")),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    source = saved(nodes, weights, tmp_path)
    error = refused(source, engine_spec("int8", gpus=("sm_75", "sm_80")))
    assert error.what == "engine: asked for int8, got fp32"
    assert "from conv" in error.found
    assert built(source, engine_spec("int8")).values["layer_types"]["correlation"] == {"Int8": 1}


def test_profiles_the_library_refuses(tmp_path: Path) -> None:
    source, spec = image_net(tmp_path), engine_spec()
    shapes = spec.profiles[0]["x"]._replace(min=(9, 3, 16, 16))
    error = refused(source, replace(spec, profiles=({"x": shapes},)))
    assert error.what == "engine: the builder made no engine"
    assert "optimization profile 0 was refused" in error.found
    assert "engine.profiles" in error.hint


def test_a_workspace_that_is_too_small(tmp_path: Path) -> None:
    error = refused(image_net(tmp_path), engine_spec(workspace_bytes=1))
    assert error.what == "engine: the builder made no engine"
    assert "workspace_bytes" in error.hint


def test_a_damaged_engine_is_found(tmp_path: Path) -> None:
    facts = built(image_net(tmp_path), engine_spec()).values
    path = tmp_path / "out/model_sm80.engine"
    data = path.read_bytes()
    path.write_bytes(data[: math.ceil(len(data) / 2)])
    assert plan_file.problem(path, "tensorrt_rtx").endswith(f"the file has {math.ceil(len(data) / 2)}")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert plan_file.problem(path, "tensorrt_rtx") == ""
    assert "SHA-256" in plan_file.problem(path, "tensorrt_rtx", sha256=facts["plan_sha256"])


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, tmp_path / "path", "import time; time.sleep(600)")
    error = refused(image_net(tmp_path), engine_spec(), timeout_s=1.5)
    assert (type(error), error.what) == (StageError, "engine: not built within 1.5 s")
    assert not [
        child for child in psutil.Process().children() if "pipeline.formats.tensorrt.builder" in child.cmdline()
    ]


@pytest.mark.parametrize(
    ("code", "what", "found"),
    [
        ("import os; os.kill(os.getpid(), 9)", "engine: the build was killed", "out of memory"),
        ("import os; os.kill(os.getpid(), 11)", "engine: the build died", "signal 11"),
        ("print('last words'); raise SystemExit(3)", "engine: the build died", "exit status 3"),
        ("raise MemoryError", "engine: out of memory", "out of memory"),
    ],
)
def test_a_child_that_dies(code: str, what: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, tmp_path / "path", code)
    error = refused(image_net(tmp_path), engine_spec())
    assert (type(error), error.what) == (StageError, what)
    assert found in error.found
    assert "last words" not in code or "last words" in error.found


def test_a_library_that_does_not_load_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, tmp_path / "path", "raise OSError('libtensorrt_rtx.so.1: cannot open')")
    (tmp_path / "path/tensorrt_rtx_bindings.py").write_text("raise ImportError('nothing here')")
    error = refused(image_net(tmp_path), engine_spec())
    assert isinstance(error, MissingError)
    assert error.found.splitlines() == [
        "import tensorrt_rtx: libtensorrt_rtx.so.1: cannot open",
        "import tensorrt_rtx_bindings: nothing here",
    ]
    assert error.hint.startswith("pip install tensorrt-rtx-cu12-libs==")


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_a_flavour_that_is_not_installed(flavour: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: None)
    error = refused(image_net(tmp_path), engine_spec(flavour=flavour, gpus=()))
    assert isinstance(error, MissingError)
    assert error.exit_code == 3
    assert error.hint.startswith(tensorrt_flavours.flavour(flavour).install)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="here is a GPU")
def test_classic_tensorrt_without_a_gpu_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX's bindings under classic's name: the same interface, up to the GPU that classic asks for."""
    code = "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
    library(monkeypatch, tmp_path / "path", code, "tensorrt")
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "11.4.0")
    error = refused(image_net(tmp_path), engine_spec(flavour="tensorrt", gpus=()))
    assert isinstance(error, MissingError)
    assert error.found.startswith("no NVIDIA driver: ")
    assert error.hint == "build on a machine with that GPU and its driver, or name this machine's under `engine.gpus`"


def test_a_disk_that_fills_up_in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = (
        "import errno, pathlib\n"
        "def full(path, data):\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "pathlib.Path.write_bytes = full\n"
        "from tensorrt_rtx_bindings import *\n"
        "from tensorrt_rtx_bindings import __version__\n"
    )
    library(monkeypatch, tmp_path / "path", patch)
    error = refused(image_net(tmp_path), engine_spec())
    assert isinstance(error, MissingError)
    assert error.what == "building an engine: no space left on the disk"
