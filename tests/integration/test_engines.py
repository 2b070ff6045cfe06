"""Real TensorRT-RTX engines, built on this machine's CPU, and those that are not what they are said to be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.tensorrt import plan_file
from pipeline.formats.tensorrt.profiles import resolve
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.machine import tensorrt_flavours
from pipeline.precision import half
from tests.integration.engine_graphs import TOKENS, built, engine_spec, image_net, refused, saved


@pytest.mark.parametrize(
    ("precision", "products"),
    [("fp32", {"Float": 3}), ("fp16", {"Half": 3}), ("bf16", {"BFloat16": 3}), ("int8", {"Int8": 3})],
)
def test_an_engine_in_each_precision_with_its_sidecar(precision: Any, products: Any, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    source = image_net(tmp_path, precision)
    made = built(source, engine_spec(precision), progress=lambda text, share: told.append((text, share)))
    assert (made.file, made.notes) == ("model_sm80.engine", ())
    out = tmp_path / "out"
    assert sorted(item.name for item in out.iterdir()) == ["model_sm80.engine", "model_sm80.engine.json"]
    facts = made.values
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
    made = built(source, engine_spec(signature=TOKENS, given=given, gpus=("sm_80", "sm_89", "sm_120")))
    assert made.file == "model_sm80_sm89_sm120.engine"
    facts = made.values
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
    made = built(folder, spec)
    assert made.file == "model.engine"
    assert made.values["compute_capabilities"] == []


def test_a_graph_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    """One protobuf message cannot be as large, so the weights are a file beside it; of zeros, which take no disk."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    rows, columns = 1024, 2**19 + 4096
    with (folder / "model.data").open("wb") as data:
        data.truncate(4 * rows * columns)
    assert 4 * rows * columns > 2**31
    weight = TensorProto(name="w", dims=(rows, columns), data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="model.data")
    values = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("N", rows)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 1)),),
        batch="N",
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["wide"]), helper.make_node("ReduceMax", ["wide"], ["y"], axes=[1])]
    infos = [
        [helper.make_tensor_value_info(item.name, TensorProto.FLOAT, item.shape) for item in side]
        for side in (values.inputs, values.outputs)
    ]
    graph = helper.make_graph(nodes, "g", *infos, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    onnx.checker.check_model(str(folder / "model.onnx"))
    facts = built(folder, engine_spec(signature=values)).values
    assert facts["size_bytes"] > 2**31
    assert facts["layer_types"]["gemm"] == {"Float": 1}
    shutil.rmtree(tmp_path / "out")  # pytest keeps the folders of three runs


def test_settings_the_flavour_has_are_taken_and_recorded(tmp_path: Path) -> None:
    asked = {"weight_streaming": True, "workspace_bytes": 1 << 24, "optimization_level": 1}
    assert built(image_net(tmp_path), engine_spec(**asked)).values["options"] == asked


def test_sameness_is_judged_by_what_decides_an_engine(tmp_path: Path) -> None:
    source = image_net(tmp_path, "int8")
    first = built(source, engine_spec("int8")).values
    again = built(source, engine_spec("int8")).values
    other = built(source, engine_spec("int8", gpus=("sm_86",))).values
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
    made = built(source, engine_spec("fp16", kept_nodes=("conv2", "pool")))
    assert (made.file, made.notes) == ("model_sm80.engine", ())
    types = made.values["layer_types"]
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
    assert built(source, engine_spec("fp16")).values["layer_types"]["correlation"] == {"Half": 2}


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
        kept = half.convert(source, tmp_path / folder, precision="fp16", keep_nodes=keep).values["kept"]
        return tmp_path / folder / "model.onnx", engine_spec("fp16", kept_nodes=tuple(kept))

    assert refused(*halved("alone", set())).found == "conv2"
    facts = built(*halved("beside", {beside})).values
    assert facts["layer_types"]["correlation"] == {"Float": 1}


def test_int8_with_one_float_convolution_that_was_never_quantised(tmp_path: Path) -> None:
    facts = built(image_net(tmp_path, "int8", in_float="conv2"), engine_spec("int8")).values
    assert facts["layer_types"]["correlation"] == {"Float": 1, "Int8": 1}
    assert facts["quantized_nodes"] == ["conv1", "fc"]
