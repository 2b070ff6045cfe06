import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import StageError
from pipeline.base.step import Outcome
from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.onnx import graph
from pipeline.formats.onnx.onnxruntime import OnnxRuntime

XY = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 4)),),
    batch="N",
)


def model(*, size: int = 4, scope: str = "/inner/l") -> onnx.ModelProto:
    """y = (x @ w) + (1 + 1), with everything a stage should remove: a foldable sum, metadata, scoped names."""
    weight = numpy_helper.from_array(np.eye(4, size, dtype=np.float32), "inner.weight")
    one = numpy_helper.from_array(np.float32(1), f"{scope}/one")
    nodes = [
        helper.make_node("Add", [f"{scope}/one", f"{scope}/one"], [f"{scope}/two"], name=f"{scope}/Add"),
        helper.make_node(
            "MatMul", ["x", "inner.weight"], [f"{scope}/product"], name=f"{scope}/MatMul", doc_string="f.py:3"
        ),
        helper.make_node("Add", [f"{scope}/product", f"{scope}/two"], ["y"], name=f"{scope}/Add_1"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4], doc_string="f.py:1")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])]
    made = helper.make_graph(nodes, "g", inputs, outputs, [weight, one], doc_string="/home/someone/f.py")
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    proto.metadata_props.add(key="path", value="/home/someone/f.py")
    proto.graph.node[0].metadata_props.add(key="stack_trace", value="/home/someone/f.py:7")
    return proto


def finish(proto: onnx.ModelProto, folder: Path, **options: Any) -> Outcome:
    (folder / "out").mkdir(parents=True)
    onnx.save(proto, str(folder / "raw.onnx"))
    return graph.finish(folder / "raw.onnx", folder / "out", **{"simplify": True, "max_ir_version": 9, **options})


def answers(path: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert (OnnxRuntime(path, XY).run({"x": x})["y"] == x + 2).all()


def test_simplified_checked_and_described(tmp_path: Path) -> None:
    outcome = finish(model(), tmp_path)
    facts = {"opset": 20, "ir_version": 9, "nodes": 2, "external_data": False}
    assert outcome == Outcome(file="model.onnx", values=facts)
    answers(tmp_path / "out/model.onnx")


def test_without_simplification_every_node_stays(tmp_path: Path) -> None:
    assert finish(model(), tmp_path, simplify=False).values["nodes"] == 3
    answers(tmp_path / "out/model.onnx")


def test_nothing_of_the_machine_is_left_and_shapes_are_inferred(tmp_path: Path) -> None:
    finish(model(), tmp_path, simplify=False)
    data = (tmp_path / "out/model.onnx").read_bytes()
    assert b"f.py" not in data
    assert b"someone" not in data
    inferred = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in onnx.load_from_string(data).graph.value_info
    }
    assert ["N", 4] in inferred.values()


@pytest.mark.parametrize("simplify", [True, False])
def test_scoped_names_do_not_change_the_bytes_and_parameters_keep_theirs(simplify: bool, tmp_path: Path) -> None:
    finish(model(scope="/inner/l"), tmp_path / "a", simplify=simplify)
    finish(model(scope="/inner"), tmp_path / "b", simplify=simplify)
    data = (tmp_path / "a/out/model.onnx").read_bytes()
    assert data == (tmp_path / "b/out/model.onnx").read_bytes()
    assert "inner.weight" in {tensor.name for tensor in onnx.load_from_string(data).graph.initializer}
    answers(tmp_path / "a/out/model.onnx")


def test_scoped_names_used_in_a_sub_graph_are_found_again(tmp_path: Path) -> None:
    def branch(name: str, operation: str) -> onnx.GraphProto:
        node = helper.make_node(operation, ["/outer/value", "/outer/value"], [f"/{name}/out"], name=f"/{name}")
        output = helper.make_tensor_value_info(f"/{name}/out", TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [output])

    nodes = [
        helper.make_node("Abs", ["x"], ["/outer/value"]),
        helper.make_node("ReduceSum", ["x"], ["/sum"], keepdims=0),
        helper.make_node("Cast", ["/sum"], ["/positive"], to=TensorProto.BOOL),
        helper.make_node("If", ["/positive"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Sub")),
    ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )  # fmt: skip
    finish(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path)
    assert b"/" not in (tmp_path / "out/model.onnx").read_bytes()
    runtime = OnnxRuntime(tmp_path / "out/model.onnx", XY)
    assert (runtime.run({"x": np.full((1, 4), -3, np.float32)})["y"] == 6).all()
    assert (runtime.run({"x": np.zeros((1, 4), np.float32)})["y"] == 0).all()


def test_external_data_in_tritons_layout_readable_by_all(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32).repeat(1, 0), "w")
    wide = numpy_helper.from_array(np.concatenate([np.eye(4), np.zeros((4, 996))], 1).astype(np.float32), "wide")
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["many"]),
        helper.make_node("Transpose", ["wide"], ["back"]),
        helper.make_node("MatMul", ["many", "back"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])], [weight, wide],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    outcome = finish(proto, tmp_path / "big", simplify=False, external_data_threshold_bytes=8000)
    assert outcome.values["external_data"] is True
    folder = tmp_path / "big/out/model.onnx"
    assert sorted(item.name for item in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (folder / "model.onnx.data").stat().st_size == 16_000
    assert (folder / "model.onnx").stat().st_size < 2000
    for item in folder.iterdir():
        assert stat.S_IMODE(item.stat().st_mode) == 0o644
    assert graph.external_files(onnx.load(str(folder / "model.onnx"), load_external_data=False)) == ("model.onnx.data",)
    x = np.ones((2, 4), np.float32)
    assert (OnnxRuntime(folder, XY).run({"x": x})["y"] == 1).all()


def test_a_simplifier_that_fails_is_noted_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: onnx.ModelProto) -> onnx.ModelProto:
        raise RuntimeError("cannot fold\nmore")

    monkeypatch.setattr(onnxslim, "slim", broken)
    outcome = finish(model(), tmp_path)
    assert list(outcome.notes) == ["not simplified: onnxslim failed (RuntimeError: cannot fold)"]
    assert outcome.values["nodes"] == 3
    answers(tmp_path / "out/model.onnx")


def test_a_simplifier_that_breaks_the_graph_is_noted_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(proto: onnx.ModelProto) -> onnx.ModelProto:
        del proto.graph.node[1]
        return proto

    monkeypatch.setattr(onnxslim, "slim", breaking)
    outcome = finish(model(), tmp_path)
    assert outcome.notes[0].startswith("not simplified: onnxslim failed (ValidationError: ")
    answers(tmp_path / "out/model.onnx")


def test_a_simplifier_that_changes_the_inputs_is_noted_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freezing(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
        return proto

    monkeypatch.setattr(onnxslim, "slim", freezing)
    assert finish(model(), tmp_path).notes == ("not simplified: onnxslim changed the inputs or outputs",)
    answers(tmp_path / "out/model.onnx")


def test_an_invalid_graph_is_an_error(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(StageError, match="not valid ONNX") as raised:
        finish(proto, tmp_path, simplify=False)
    assert "NoSuchOperator" in raised.value.found


def test_constants_named_and_ordered_by_chance_give_the_same_bytes(tmp_path: Path) -> None:
    def shuffled(names: tuple[str, str], *, reverse: bool) -> onnx.ModelProto:
        tensors = [
            numpy_helper.from_array(np.full(4, value, np.float32), name)
            for value, name in zip((2, 3), names, strict=True)
        ]
        nodes = [
            helper.make_node("Mul", ["x", names[0]], ["product"]),
            helper.make_node("Add", ["product", names[1]], ["y"]),
        ]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
        unused = numpy_helper.from_array(np.float32(9), "unused")
        made = helper.make_graph(nodes, "g", ports[:1], ports[1:], [*(tensors[::-1] if reverse else tensors), unused])
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])

    written = []
    for place, proto in (("a", shuffled(("p", "q"), reverse=False)), ("b", shuffled(("z", "c"), reverse=True))):
        graph.name_constants(proto)
        assert [numpy_helper.to_array(tensor)[0] for tensor in proto.graph.initializer] == [2, 3]
        (tmp_path / place).mkdir()
        finish(proto, tmp_path / place, simplify=False)
        written.append((tmp_path / place / "out/model.onnx").read_bytes())
    assert written[0] == written[1]
    runtime = OnnxRuntime(tmp_path / "a/out/model.onnx", XY)
    assert (runtime.run({"x": np.ones((1, 4), np.float32)})["y"] == 5).all()


def test_nodes_without_names_get_those_of_their_first_outputs_made_unique() -> None:
    result = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "branch", [], [result])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="y"),
        helper.make_node("If", ["c"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    proto = helper.make_model(helper.make_graph(nodes, "g", [], []))
    graph.name_nodes(proto)
    assert [node.name for node in proto.graph.node] == ["y", "b", "y_"]
    assert [attribute.g.node[0].name for attribute in proto.graph.node[1].attribute] == ["b_", "b__"]
