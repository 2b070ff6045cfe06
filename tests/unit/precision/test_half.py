from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxruntime.transformers import float16

from pipeline.base.errors import StageError
from pipeline.base.step import Outcome
from pipeline.base.values import Array
from pipeline.formats.onnx import graph
from pipeline.precision import half_rules
from tests.unit.precision.half_nets import (
    BF16,
    FLOAT,
    FP16,
    INT64,
    attention,
    bodies,
    body,
    close,
    computes_in,
    conv_net,
    convert,
    info,
    loops,
    node,
    run,
    saved,
    tokens,
    types,
)  # fmt: skip

PRECISIONS = pytest.mark.parametrize(("precision", "kind"), [("fp16", FP16), ("bf16", BF16)])


def in_order(model: onnx.ModelProto) -> bool:
    made = {item.name for item in (*model.graph.input, *model.graph.initializer)} | {""}
    for item in model.graph.node:
        if not made.issuperset(item.input):
            return False
        made |= set(item.output)
    return True


@PRECISIONS
def test_weights_and_nodes_are_converted_inputs_and_outputs_are_not(precision: str, kind: int, tmp_path: Path) -> None:
    layers = [node("Mul", "x w", "z"), node("Add", "z b", "y")]
    inputs, outputs = [info("x", ["N", 2])], [info("y", ["N", 2]), info("z", ["N", 2])]
    source = saved(tmp_path / "a", body(layers, inputs, outputs, w=np.float32([2, 1.0009]), b=np.float32([1, 0])))
    outcome, model = convert(source, precision)
    facts = {
        "opset": 20 if precision == "fp16" else 22, "ir_version": 9, "nodes": 5, "external_data": False,
        "precision": precision, f"nodes_{precision}": 2, "nodes_fp32": 0, "kept": [],
    }  # fmt: skip
    assert outcome == Outcome(file="model.onnx", values=facts)
    assert list(model.graph.input) == inputs
    assert list(model.graph.output) == outputs
    assert {item.data_type for item in model.graph.initializer} == {kind}
    assert [item.op_type for item in model.graph.node] == ["Cast", "Mul", "Cast", "Add", "Cast"]
    if precision == "fp16":
        y, z = run(model, x=np.float32([[3, 1]]))
        assert z.tolist() == [[6, 1 + 2**-10]]  # 1.0009 to the nearest float16
        assert y.tolist() == [[7, 1 + 2**-10]]


@PRECISIONS
def test_a_conv_net(precision: str, kind: int, tmp_path: Path) -> None:
    source = conv_net(tmp_path / "a")
    outcome, model = convert(source, precision)
    assert outcome.values[f"nodes_{precision}"] == 6
    assert outcome.values["nodes_fp32"] == 0
    assert in_order(model)
    assert all(computes_in(model, f"n_{name}") == kind for name in ("conv", "relu", "pool", "mean", "flat"))
    if precision == "fp16":
        x = np.random.default_rng(2).standard_normal((4, 3, 8, 8)).astype(np.float32)
        (expected,), (y,) = run(source, x=x), run(model, x=x)
        assert close(y, expected, 2e-3)
        assert (y != expected).any()


def test_the_same_answers_as_onnxruntimes_own_converter(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "a")
    _, model = convert(source)
    theirs = float16.convert_float_to_float16(graph.load(source), keep_io_types=True, disable_shape_infer=True)
    x = np.random.default_rng(2).standard_normal((4, 3, 8, 8)).astype(np.float32)
    assert (run(model, x=x)[0] == run(theirs, x=x)[0]).all()


def test_two_integer_inputs_and_dynamic_shapes(tmp_path: Path) -> None:
    source = attention(tmp_path / "a")
    outcome, model = convert(source)
    assert list(model.graph.input) == list(graph.load(source).graph.input)
    for feeds in (tokens(), tokens(2, 12)):
        assert close(run(model, **feeds)[0], run(source, **feeds)[0], 5e-3)
    assert outcome.values["nodes_fp16"] == 10
    assert outcome.values["nodes_fp32"] == 5


def test_two_float32_readers_share_one_cast_and_constants_are_not_shared(tmp_path: Path) -> None:
    layers = [
        node("Relu", "x", "a"),
        node("Max", "a w", "b"),
        node("Min", "a b", "c"),
        node("Mul", "w a", "d"),
        node("Add", "c d", "y"),
    ]
    exact = np.float32([1 + 2**-20, 5])
    source = saved(tmp_path / "a", body(layers, [info("x", ["N", 2])], [info("y", ["N", 2])], w=exact))
    _, model = convert(source)
    assert [item.op_type for item in model.graph.node].count("Cast") == 4  # x, a, c, y
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert sorted(weights) == ["w", "w_fp16"]
    assert weights["w"].tolist() == exact.tolist()
    assert weights["w_fp16"].tolist() == [1, 5]
    assert run(model, x=np.float32([[3, 2]]))[0].tolist() == [[6, 12]]


def test_what_is_kept_on_demand_is_noted(tmp_path: Path) -> None:
    keep = {"keep_ops": ["MaxPool", "LSTM"], "keep_nodes": {"n_y", "n_conv"}}
    outcome, model = convert(conv_net(tmp_path / "a"), **keep)
    assert list(outcome.notes) == [
        "kept in float32: n_conv, n_y (named); n_pool (operator named)",
        "no LSTM in the graph to keep in float32",
    ]
    assert outcome.values["nodes_fp16"] == 3
    assert outcome.values["nodes_fp32"] == 3
    assert outcome.values["kept"] == ["n_conv", "n_pool", "n_y"]
    kinds = {name: computes_in(model, f"n_{name}") for name in ("conv", "relu", "pool", "mean", "flat", "y")}
    assert kinds == {"conv": FLOAT, "relu": FP16, "pool": FLOAT, "mean": FP16, "flat": FP16, "y": FLOAT}
    weights = types(model)
    assert (weights["w"], weights["v"]) == (FLOAT, FLOAT)


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    layers = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])]))
    outcome, model = convert(source, keep_nodes={"a"})
    assert list(outcome.notes) == ["kept in float32: a (named)"]
    assert outcome.values["nodes_fp32"] == 1
    assert (computes_in(model, "a"), computes_in(model, "y")) == (FLOAT, FP16)


def test_an_unknown_node_is_an_error(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "a")
    with pytest.raises(StageError, match=r"optimize\[fp16\]: no node has a name that is to stay float32") as raised:
        convert(source, keep_nodes={"n_conv", "conv", "other"})
    assert raised.value.found == "conv, other"
    assert not (source.parent / "fp16/model.onnx").exists()


@pytest.mark.parametrize("why", ["all kept", "integers only"])
def test_nothing_to_convert_is_an_error(why: str, tmp_path: Path) -> None:
    kind = FLOAT if why == "all kept" else INT64
    layers = [node("Neg", "x", "a"), node("Abs", "a", "y")]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"], kind)], [info("y", ["N"], kind)]))
    with pytest.raises(StageError, match="nothing to convert: no node can compute in bf16") as raised:
        convert(source, "bf16", keep_ops=["Neg", "Abs"])
    assert raised.value.found == f"{2 if why == 'all kept' else 0} nodes that compute in float32"
    assert not (source.parent / "bf16/model.onnx").exists()


def test_constant_nodes_become_weights(tmp_path: Path) -> None:
    layers = [
        node("Constant", "", "two", value_float=2.0),
        node("Constant", "", "three", value=numpy_helper.from_array(np.float32([3]))),
        node("Mul", "x two", "a"),
        node("Add", "a three", "y"),
    ]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])]))
    _, model = convert(source)
    assert {item.name: item.data_type for item in model.graph.initializer} == {"two_fp16": FP16, "three_fp16": FP16}
    assert run(model, x=np.float32([5]))[0].tolist() == [13]


def test_a_float16_input_of_the_model_stays(tmp_path: Path) -> None:
    layers = [node("Cast", "x", "a", to=FLOAT), node("Mul", "a w", "y")]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"], FP16)], [info("y", ["N"])], w=np.float32([3])))
    _, model = convert(source)
    assert types(model)["x"] == FP16
    assert run(model, x=np.float16([2]))[0].tolist() == [6]


X = [np.float32([0.1, 0.3]), np.float32([-0.5, 0.25])]


@PRECISIONS
def test_bodies_are_converted_with_what_they_read_from_outside(precision: str, kind: int, tmp_path: Path) -> None:
    source = loops(tmp_path / "a")
    outcome, model = convert(source, precision)
    assert outcome.values[f"nodes_{precision}"] == 9
    # Exp, ReduceSum and Less of the loop, the constant that is a branch's output, ReduceSum, Greater
    assert outcome.values["nodes_fp32"] == 6
    loop = next(item for item in model.graph.node if item.op_type == "Loop")
    (step,) = bodies(loop)
    found = types(step)
    assert {name: found[name] for name in ("state", "doubled", "grown")} == {
        "state": kind,
        "doubled": kind,
        "grown": FLOAT,
    }
    assert types(model)[f"shift_{precision}"] == kind
    assert in_order(model)
    if precision == "fp16":
        for x in X:
            assert close(run(model, x=x)[0], run(source, x=x)[0], 2e-3)


def test_what_two_bodies_read_is_cast_once_outside_of_them(tmp_path: Path) -> None:
    source = loops(tmp_path / "a")
    _, model = convert(source, keep_nodes={"n_moved", "n_t"})
    casts = [item.output[0] for item in model.graph.node if item.op_type == "Cast"]
    assert casts.count("r_fp32") == 1
    assert in_order(model)
    for x in X:
        assert close(run(model, x=x)[0], run(source, x=x)[0], 2e-3)


def test_new_names_avoid_those_in_use(tmp_path: Path) -> None:
    layers = [node("Mul", "x w", "w_fp16"), node("Add", "w_fp16 w", "y")]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])], w=np.float32([3])))
    _, model = convert(source)
    assert [item.name for item in model.graph.initializer] == ["w_fp16_"]
    assert run(model, x=np.float32([5]))[0].tolist() == [18]


def test_a_node_kept_in_float32_keeps_its_body(tmp_path: Path) -> None:
    source = loops(tmp_path / "a")
    outcome, model = convert(source, keep_nodes={"n_state_end", "n_t"})
    assert list(outcome.notes) == ["kept in float32: n_state_end, n_t (named)"]
    loop = next(item for item in model.graph.node if item.op_type == "Loop")
    assert FP16 not in types(bodies(loop)[0]).values()
    assert types(model)["r"] == FP16  # the loop reads a cast of it
    for x in X:
        assert close(run(model, x=x)[0], run(source, x=x)[0], 2e-3)


@PRECISIONS
def test_same_input_same_bytes(precision: str, kind: int, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        source = attention(tmp_path / name)
        convert(source, precision, keep_nodes={"n_q", "n_k", "n_v", "n_sum"})
        files.append((source.parent / precision / graph.FILE).read_bytes())
    assert files[0] == files[1]


@PRECISIONS
def test_weights_outside_the_file(precision: str, kind: int, tmp_path: Path) -> None:
    source = attention(tmp_path / "a", external_data_threshold_bytes=1000)
    assert source.is_dir()
    outcome, model = convert(source, precision)
    assert outcome.values["external_data"] is False
    inside, same = convert(attention(tmp_path / "b"), precision)
    assert inside == outcome
    assert same == model


def nearest_even(array: Array) -> Array:
    """Bits of float32 values in bfloat16, by the usual integer arithmetic."""
    bits = array.view(np.uint32).astype(np.uint64)
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def test_bf16_weights_are_rounded_once_to_nearest_even(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    w = (random.standard_normal(4096) * 10.0 ** random.integers(-37, 37, 4096)).astype(np.float32)
    w[:4] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1e5]  # two ties; not a tie, but by way of float16; large
    layers = [node("Mul", "x w", "y")]
    source = saved(tmp_path / "a", body(layers, [info("x", [4096])], [info("y", [4096])], w=w))
    _, model = convert(source, "bf16")
    (tensor,) = model.graph.initializer
    assert tensor.data_type == BF16
    stored = np.frombuffer(tensor.raw_data, np.uint16)
    assert (stored == nearest_even(w)).all()
    assert stored[:4].view(ml_dtypes.bfloat16).astype(np.float32).tolist() == [1, 1 + 2**-6, 1 + 2**-7, 99840]


def test_bf16_keeps_an_opset_that_knows_it(tmp_path: Path) -> None:
    layers = [node("Neg", "x", "y")]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])]), opset=23)
    assert convert(source, "bf16")[0].values["opset"] == 23


def test_a_graph_that_cannot_be_brought_to_bf16s_opset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> onnx.ModelProto:
        raise RuntimeError("no adapter for Neg")

    source = conv_net(tmp_path / "a")
    monkeypatch.setattr(onnx.version_converter, "convert_version", refused)
    with pytest.raises(
        StageError, match=r"optimize\[bf16\]: the graph cannot be brought from opset 20 to 22"
    ) as raised:
        convert(source, "bf16")
    assert raised.value.found == "no adapter for Neg"
    assert raised.value.hint == "export it with opset: 22"


def test_a_tensor_of_unknown_type_is_an_error(tmp_path: Path) -> None:
    layers = [node("Strange", "x", "a", domain="other"), node("Neg", "x", "b"), node("Add", "a b", "y")]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])]))
    with pytest.raises(StageError, match="the type of a tensor is not known") as raised:
        convert(source)
    assert raised.value.found == "a, an output of n_a (Strange)"


def test_an_invalid_result_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = conv_net(tmp_path / "a")
    monkeypatch.setattr(
        half_rules,
        "types",
        lambda node, *_: ([ir.DataType.FLOAT16] * len(node.inputs), [ir.DataType.FLOAT] * len(node.outputs)),
    )
    with pytest.raises(StageError, match=r"optimize\[fp16\]: the converted graph is not valid ONNX") as raised:
        convert(source)
    assert "Inferred elem type differs from existing elem type" in raised.value.found
