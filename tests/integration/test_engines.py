"""Real TensorRT-RTX engines of small nets, built on this machine's CPU, and every way in which none is made."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline import tensorrt_flavours
from pipeline.artifacts import Signature, TensorSpec
from pipeline.engine import plan_file
from pipeline.engine.build import build
from pipeline.engine.profiles import resolve
from pipeline.engine.spec import EngineSpec
from pipeline.errors import MissingError, PipelineError, StageError
from pipeline.optimize import half

CHANNELS = 8
IMAGES = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 3, 16, 16)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 4)),),
    batch="N",
)
TOKENS = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", "L", 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", "L", 4)),),
    batch="N",
)
NARROW = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def saved(
    nodes: list[Any], weights: Mapping[str, Any], folder: Path, signature: Signature = IMAGES, **changes: Any
) -> Path:
    """A checked model with the signature's inputs and outputs, the latter changed where asked."""

    def infos(specs: Any) -> list[Any]:
        kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(item.name, kinds[item.dtype], item.shape) for item in specs]

    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    outputs = [replace(item, **changes) for item in signature.outputs]
    made = helper.make_graph(nodes, "g", infos(signature.inputs), infos(outputs), initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def image_net(folder: Path, precision: str = "fp32", *, in_float: str = "") -> Path:
    """conv1 - relu1 - conv2 - pool - fc; in fp16 and bf16 between casts, in int8 with Q/DQ before every weighted node.

    Args:
        folder: for the file.
        precision: of the weights and the arithmetic.
        in_float: ``conv2``: it stays in float, ``conv2 pool``: both do.
    """
    random = np.random.default_rng(0)
    shapes = {"w1": (CHANNELS, 3, 3, 3), "w2": (CHANNELS, CHANNELS, 3, 3), "w3": (CHANNELS, 4)}
    weights: dict[str, Any] = {name: random.normal(size=shape, scale=0.2) for name, shape in shapes.items()}
    kind, dtype = NARROW.get(precision, (TensorProto.FLOAT, np.float32))
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    nodes: list[Any] = []

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def operand(tensor: str, *, plain: bool = False) -> str:
        if precision != "int8" or plain:
            return tensor
        weights[f"{tensor}_s"], weights[f"{tensor}_z"] = np.float32(0.02), np.int8(0)
        scale = [f"{tensor}_s", f"{tensor}_z"]
        return node(
            "DequantizeLinear", [node("QuantizeLinear", [tensor, *scale], f"{tensor}_q"), *scale], f"{tensor}_dq"
        )

    def conv(tensor: str, weight: str, name: str) -> str:
        plain = name in in_float
        return node("Conv", [operand(tensor, plain=plain), operand(weight, plain=plain)], name, pads=[1] * 4)

    def cast(tensor: str, name: str, to: int) -> str:
        return node("Cast", [tensor], name, to=to) if precision in NARROW else tensor

    tensor = node("Relu", [conv(cast("x", "cast_in", kind), "w1", "conv1")], "relu1")
    if in_float:
        weights["w2"] = weights["w2"].astype(np.float32)
        tensor = cast(tensor, "widened", TensorProto.FLOAT)
    tensor = conv(tensor, "w2", "conv2")
    tensor = cast(tensor, "narrowed", kind) if in_float == "conv2" else tensor
    tensor = node("GlobalAveragePool", [tensor], "pool")
    tensor = cast(tensor, "narrowed", kind) if in_float == "conv2 pool" else tensor
    tensor = node("Flatten", [tensor], "flat")
    tensor = node("MatMul", [operand(tensor), operand("w3")], "fc")
    cast(tensor, "cast_out", TensorProto.FLOAT)
    nodes[-1].output[0] = "y"
    return saved(nodes, weights, folder)


def engine_spec(precision: Any = "fp32", signature: Signature = IMAGES, given: Any = (), **changes: Any) -> EngineSpec:
    values = {
        "flavour": "tensorrt_rtx",
        "precision": precision,
        "signature": signature,
        "max_batch_size": 8,
        "profiles": resolve(signature, given, 8),
        "gpus": ("sm_80",),
    }
    return EngineSpec(**{**values, **changes})


def built(source: Path, spec: EngineSpec, **options: Any) -> dict[str, Any]:
    out = source.parent / "out"
    out.mkdir(exist_ok=True)
    values: dict[str, Any] = {"timeout_s": 120, "progress": lambda text, share: None, **options}
    return build(source, spec, out, timing_cache=None, log_path=source.parent / "engine.log", **values)


def refused(source: Path, spec: EngineSpec, **options: Any) -> PipelineError:
    """The error of a build that fails; and nothing is left of it."""
    with pytest.raises(PipelineError) as caught:
        built(source, spec, **options)
    assert list((source.parent / "out").iterdir()) == []
    return caught.value


def library(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, module: str = "tensorrt_rtx") -> None:
    """Put a module before the real ones on the child's path."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(
    ("precision", "products"),
    [("fp32", {"Float": 3}), ("fp16", {"Half": 3}), ("bf16", {"BFloat16": 3}), ("int8", {"Int8": 3})],
)
def test_an_engine_in_each_precision_with_its_sidecar(precision: Any, products: Any, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    source = image_net(tmp_path, precision)
    values = built(source, engine_spec(precision), progress=lambda text, share: told.append((text, share)))
    assert (values["file"], values["notes"]) == ("model_sm80.engine", [])
    out = tmp_path / "out"
    assert sorted(item.name for item in out.iterdir()) == ["model_sm80.engine", "model_sm80.engine.json"]
    facts = values["properties"]
    assert json.loads((out / "model_sm80.engine.json").read_text()) == facts
    found: dict[str, int] = {}
    for kind in ("correlation", "gemm", "runtime_fusion"):
        for dtype, count in facts["layer_types"].get(kind, {}).items():
            found[dtype] = found.get(dtype, 0) + count
    assert found == products
    assert (facts["flavour"], facts["precision"]) == ("tensorrt_rtx", precision)
    assert facts["version"] == tensorrt_flavours.installed("tensorrt_rtx")
    assert facts["compute_capabilities"] == ["sm_80"]
    assert facts["quantized_nodes"] == (["conv1", "conv2", "fc"] if precision == "int8" else [])
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 3, 16, 16]}]
    assert facts["profiles"] == [{"x": {"min": [1, 3, 16, 16], "opt": [8, 3, 16, 16], "max": [8, 3, 16, 16]}}]
    assert facts["size_bytes"] == (out / "model_sm80.engine").stat().st_size
    assert plan_file.problem(out / "model_sm80.engine", "tensorrt_rtx", sha256=facts["plan_sha256"]) == ""
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    assert told[-1] == ("engine: inspecting", None)
    assert "[V] Layers:" in (tmp_path / "engine.log").read_text()


def test_two_profiles_of_two_letters_for_several_gpus(tmp_path: Path) -> None:
    weights = {"w": np.ones((8, 4), np.float32)}
    source = saved([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], weights, tmp_path, TOKENS)
    given = [{"L": [1, 4, 16]}, {"N": [1, 2, 8], "L": [16, 32, 64]}]
    values = built(source, engine_spec(signature=TOKENS, given=given, gpus=("sm_80", "sm_89", "sm_120")))
    assert values["file"] == "model_sm80_sm89_sm120.engine"
    facts = values["properties"]
    assert facts["compute_capabilities"] == ["sm_80", "sm_89", "sm_120"]
    assert [profile["x"] for profile in facts["profiles"]] == [
        {"min": [1, 1, 8], "opt": [8, 4, 8], "max": [8, 16, 8]},
        {"min": [1, 16, 8], "opt": [2, 32, 8], "max": [8, 64, 8]},
    ]


def test_a_static_graph_with_external_data_makes_a_portable_engine(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 64)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 64)),),
        batch=None,
    )
    plain = saved(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.eye(64, dtype=np.float32)}, tmp_path, signature
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    onnx.save_model(
        onnx.load(str(plain)), str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data"
    )
    spec = engine_spec(signature=signature, max_batch_size=0, profiles=resolve(signature, (), 0), gpus=())
    values = built(folder, spec)
    assert values["file"] == "model.engine"
    assert values["properties"]["compute_capabilities"] == []


def test_settings_the_flavour_has_are_taken_and_recorded(tmp_path: Path) -> None:
    asked = {"weight_streaming": True, "workspace_bytes": 1 << 24, "optimization_level": 1}
    assert built(image_net(tmp_path), engine_spec(**asked))["properties"]["options"] == asked


def test_sameness_is_judged_by_what_decides_an_engine(tmp_path: Path) -> None:
    source = image_net(tmp_path, "int8")
    first = built(source, engine_spec("int8"))["properties"]
    again = built(source, engine_spec("int8"))["properties"]
    other = built(source, engine_spec("int8", gpus=("sm_86",)))["properties"]
    assert first["identity"] == again["identity"] != other["identity"]
    assert first["layer_types"] == again["layer_types"]


@pytest.mark.parametrize(
    ("graph", "asked", "what", "named"),
    [
        ("fp32", "fp16", "asked for fp16, got fp32", "conv1"),
        ("fp32", "int8", "asked for int8, got fp32", "conv2"),
        ("fp16", "fp32", "asked for fp32, got fp16", "conv1"),
        ("fp16", "bf16", "asked for bf16, got fp16", "fc"),
        ("int8", "fp16", "asked for fp16, got int8", "fc"),
    ],
)
def test_a_mislabelled_graph_is_refused_with_its_layers(
    graph: str, asked: Any, what: str, named: str, tmp_path: Path
) -> None:
    error = refused(image_net(tmp_path, graph), engine_spec(asked))
    assert isinstance(error, StageError)
    assert error.what == f"engine: {what}"
    assert len(error.found.splitlines()) == 3
    assert f", from {named}" in error.found or f", {named}" in error.found


def test_a_node_kept_in_float_is_accepted_only_where_it_was_kept_on_purpose(tmp_path: Path) -> None:
    source = image_net(tmp_path, "fp16", in_float="conv2 pool")
    error = refused(source, engine_spec("fp16"))
    assert error.what == "engine: asked for fp16, got fp32"
    assert error.found.count("\n") == 0
    assert "from conv2" in error.found
    values = built(source, engine_spec("fp16", kept_nodes=("conv2", "pool")))
    assert (values["file"], values["notes"]) == ("model_sm80.engine", [])
    types = values["properties"]["layer_types"]
    assert (types["correlation"], types["runtime_fusion"]) == ({"Float": 1}, {"Half": 2})


def test_a_lone_node_that_the_library_narrows_against_the_graph_is_refused(tmp_path: Path) -> None:
    source = image_net(tmp_path, "fp16", in_float="conv2")
    error = refused(source, engine_spec("fp16", kept_nodes=("conv2",)))
    assert isinstance(error, StageError)
    assert error.what == (
        "engine: nodes that stay fp32 in the graph do not in the engine, so it is not what the gates judged"
    )
    assert error.found == "conv2"
    assert error.hint.startswith("keep the node before or after each in fp32 too")
    assert built(source, engine_spec("fp16"))["properties"]["layer_types"]["correlation"] == {"Half": 2}


@pytest.mark.parametrize("beside", ["relu1", "pool"])
def test_weights_beyond_fp16_are_not_rounded_to_infinity_by_an_engine(beside: str, tmp_path: Path) -> None:
    """The conversion keeps their node in float by itself; the library narrows it unless another stays beside it."""
    source = image_net(tmp_path)
    model = onnx.load(str(source))
    weights = next(item for item in model.graph.initializer if item.name == "w2")
    weights.CopyFrom(numpy_helper.from_array(np.float32(1e6) * numpy_helper.to_array(weights), "w2"))
    onnx.save(onnx.shape_inference.infer_shapes(model), str(source))

    def halved(folder: str, keep: set[str]) -> tuple[Path, EngineSpec]:
        (tmp_path / folder).mkdir()
        kept = half.convert(source, tmp_path / folder, precision="fp16", keep_nodes=keep)["properties"]["kept"]
        return tmp_path / folder / "model.onnx", engine_spec("fp16", kept_nodes=tuple(kept))

    assert refused(*halved("alone", set())).found == "conv2"
    facts = built(*halved("beside", {beside}))["properties"]
    assert facts["layer_types"]["correlation"] == {"Float": 1}


def test_int8_with_one_float_convolution_that_was_never_quantised(tmp_path: Path) -> None:
    facts = built(image_net(tmp_path, "int8", in_float="conv2"), engine_spec("int8"))["properties"]
    assert facts["layer_types"]["correlation"] == {"Float": 1, "Int8": 1}
    assert facts["quantized_nodes"] == ["conv1", "fc"]


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
    assert built(source, engine_spec("int8"))["properties"]["layer_types"]["correlation"] == {"Int8": 1}


def test_profiles_the_library_refuses(tmp_path: Path) -> None:
    source, spec = image_net(tmp_path), engine_spec()
    shapes = replace(spec.profiles[0]["x"], min=(9, 3, 16, 16))
    error = refused(source, replace(spec, profiles=({"x": shapes},)))
    assert error.what == "engine: the builder made no engine"
    assert "optimization profile 0 was refused" in error.found
    assert "engine.profiles" in error.hint


def test_a_workspace_that_is_too_small(tmp_path: Path) -> None:
    error = refused(image_net(tmp_path), engine_spec(workspace_bytes=1))
    assert error.what == "engine: the builder made no engine"
    assert "workspace_bytes" in error.hint


def test_a_damaged_engine_is_found(tmp_path: Path) -> None:
    facts = built(image_net(tmp_path), engine_spec())["properties"]
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
    assert not [child for child in psutil.Process().children() if "pipeline.engine.builder" in child.cmdline()]


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
