import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.formats.onnx import interface
from tests.unit.formats import tiny

Shape = list[int | str | None] | None


def model(x: Shape, y: Shape, dtype: int = TensorProto.FLOAT, name: str = "y") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, dtype, y)],
    )
    return helper.make_model(graph)


@pytest.mark.parametrize("y", [["N", 4], ["batch", 4], [None, None], None])
def test_a_graph_may_say_less_than_the_yaml(y: Shape) -> None:
    assert interface.problem(model(["N", 4], y), tiny.XY) == ""


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (model([2, 4], ["N", 4]), "input x has shape [2, 4], not [N, 4]"),
        (model(["N", 5], ["N", 4]), "input x has shape [N, 5], not [N, 4]"),
        (model(["N", 4], [2, 4]), "output y has shape [2, 4], not [N, 4]"),
        (model(["N", 4], ["N", 4, 1]), "output y has shape [N, 4, 1], not [N, 4]"),
        (model(None, ["N", 4]), "input x has no shape"),
        (model(["N", 4], ["N", 4], TensorProto.INT64), "output y is INT64, not FLOAT"),
        (model(["N", 4], ["N", 4], name="z"), "its outputs are z, not y"),
    ],
)
def test_what_a_graph_must_not_say(proto: onnx.ModelProto, reason: str) -> None:
    assert interface.problem(proto, tiny.XY) == reason


def test_the_yamls_dimensions_are_written() -> None:
    proto = model(["s43", 4], [None, None])
    interface.name_dimensions(proto, tiny.XY)
    for item in (*proto.graph.input, *proto.graph.output):
        assert [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim] == ["N", 4]
