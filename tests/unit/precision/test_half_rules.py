from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from tests.unit.precision.half_nets import (
    FLOAT,
    FP16,
    INT64,
    attention,
    body,
    close,
    computes_in,
    convert,
    info,
    node,
    run,
    saved,
    tokens,
    types,
)  # fmt: skip


def test_a_mask_that_float16_cannot_hold_reaches_softmax_as_it_is(tmp_path: Path) -> None:
    """A row with nothing but masked words would be NaN if the mask became -inf."""
    source = attention(tmp_path / "a")
    outcome, model = convert(source)
    assert list(outcome.notes) == ["kept in float32: n_bias, n_masked (values fp16 cannot hold)"]
    feeds = tokens()
    assert not feeds["mask"][2].any()
    assert close(run(model, **feeds)[0][2], run(source, **feeds)[0][2], 5e-3)
    assert computes_in(model, "n_masked") == FLOAT


def test_bf16_cannot_hold_float32s_least_number_either(tmp_path: Path) -> None:
    outcome, _ = convert(attention(tmp_path / "a"), "bf16")
    assert list(outcome.notes) == ["kept in float32: n_bias, n_masked (values bf16 cannot hold)"]


def test_sensitive_neighbours_hand_on_float32(tmp_path: Path) -> None:
    layers = [
        node("Identity", "x", "a"),
        node("Exp", "a", "b"),
        node("Log", "b", "c"),
        node("ReduceSum", "c", "d", keepdims=1),
        node("Relu", "d", "y"),
    ]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N", 2])], [info("y", None)]))
    _, model = convert(source)
    ops = [item.op_type for item in model.graph.node]
    assert ops == ["Cast", "Identity", "Cast", "Exp", "Log", "ReduceSum", "Cast", "Relu", "Cast"]
    # e^20 is beyond float16
    assert run(model, x=np.float32([[20, 1]]))[0] == pytest.approx(21)


def test_integers_reach_float32_nodes_exactly(tmp_path: Path) -> None:
    layers = [
        node("Cast", "x", "a", to=FLOAT),
        node("ReduceSum", "a", "b", keepdims=1),
        node("Sigmoid", "a", "c"),
        node("Greater", "b limit", "y"),
    ]
    inputs, outputs = [info("x", ["N", 2], INT64)], [info("y", None, TensorProto.BOOL), info("c", None)]
    source = saved(tmp_path / "a", body(layers, inputs, outputs, limit=np.float32(4098)))
    _, model = convert(source)
    assert run(model, x=np.int64([[4097, 2]]))[0].tolist() == [[True]]  # 4097 would be 4096 in float16
    assert run(model, x=np.int64([[4097, 1]]))[0].tolist() == [[False]]


def test_sizes_and_positions_beyond_2048_are_exact(tmp_path: Path) -> None:
    layers = [
        node("Shape", "x", "shape"),
        node("Cast", "shape", "size", to=FLOAT),
        node("Mul", "size part", "share"),
        node("Floor", "share", "whole"),
        node("Cast", "whole", "end", to=INT64),
        node("Slice", "x zero end zero", "short"),
        node("Sigmoid", "short", "y"),
    ]
    made = body(layers, [info("x", ["N"])], [info("y", ["M"])], part=np.float32([0.75]), zero=np.int64([0]))
    outcome, model = convert(saved(tmp_path / "a", made))
    assert outcome.values["nodes_fp16"] == 2
    assert run(model, x=np.zeros(5461, np.float32))[0].shape == (4095,)  # 4096 in float16


def test_pixels_are_integers_until_the_first_layer(tmp_path: Path) -> None:
    layers = [
        node("Cast", "x", "a", to=FLOAT),
        node("Sub", "a mean", "b"),
        node("MatMul", "b w", "c"),
        node("Relu", "c", "y"),
    ]
    tensors = {"mean": np.float32([4096]), "w": np.eye(2, dtype=np.float32)}
    x, y = info("x", ["N", 2], TensorProto.UINT16), info("y", ["N", 2])
    _, model = convert(saved(tmp_path / "a", body(layers, [x], [y], **tensors)))
    assert [computes_in(model, f"n_{name}") for name in "bc"] == [FLOAT, FP16]
    assert computes_in(model, "n_y") == FP16
    assert run(model, x=np.uint16([[4099, 4101]]))[0].tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("constant", "unfit"),
    [
        (65504, False), (65519, False), (65520, True), (-1e30, True), (np.inf, False),
        (1e-7, False), (1e-12, True), (0, False),
    ],
)  # fmt: skip
def test_constants_that_float16_cannot_hold(constant: float, unfit: bool, tmp_path: Path) -> None:
    layers = [
        node("Add", "x w", "a"),
        node("Reshape", "a shape", "b"),
        node("Sigmoid", "b", "c"),
        node("Neg", "c", "y"),
    ]
    tensors = {"w": np.float32([constant]), "shape": np.int64([-1])}
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])], **tensors))
    outcome, model = convert(source)
    # the reader of what the constant went into stays too; its bounded result does not count
    assert list(outcome.notes) == (["kept in float32: n_a, n_b, n_c (values fp16 cannot hold)"] if unfit else [])
    assert computes_in(model, "n_y") == FP16
    x = np.float32([0.5, -65000])
    assert close(run(model, x=x)[0], run(source, x=x)[0], 1e-3)


def test_a_divisor_that_float16_would_make_zero(tmp_path: Path) -> None:
    layers = [node("Clip", "x least", "a"), node("Div", "x a", "y"), node("Neg", "x", "z")]
    outputs = [info("y", ["N"]), info("z", ["N"])]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], outputs, least=np.float32(1e-12)))
    outcome, model = convert(source)
    assert list(outcome.notes) == ["kept in float32: n_a, n_y (values fp16 cannot hold)"]
    assert run(model, x=np.float32([0, 3]))[0].tolist() == [0, 1]


def test_large_weights_keep_all_their_readers(tmp_path: Path) -> None:
    layers = [node("MatMul", "x w", "a"), node("Tanh", "a", "b"), node("MatMul", "x w", "c"), node("Add", "b c", "y")]
    w = np.float32([[1e5, 0], [0, 2]])
    source = saved(tmp_path / "a", body(layers, [info("x", ["N", 2])], [info("y", ["N", 2])], w=w))
    outcome, model = convert(source)
    assert list(outcome.notes) == ["kept in float32: n_a, n_c (values fp16 cannot hold)"]
    assert {item.name: item.data_type for item in model.graph.initializer} == {"w": FLOAT}
    assert run(model, x=np.float32([[0.5, 1]]))[0][0] == pytest.approx([50001, 2 + np.tanh(2)], rel=1e-3)


def test_inputs_that_onnx_says_are_float32_stay(tmp_path: Path) -> None:
    layers = [node("Resize", "x - scales", "y", mode="nearest")]
    x, y = info("x", [1, 1, 2, 2]), info("y", [1, 1, 4, 4])
    source = saved(tmp_path / "a", body(layers, [x], [y], scales=np.float32([1, 1, 2, 2])))
    outcome, model = convert(source)
    assert outcome.values["nodes_fp16"] == 1
    assert types(model)["scales"] == FLOAT
    assert run(model, x=np.ones((1, 1, 2, 2), np.float32))[0].sum() == 16


def test_an_operator_onnx_does_not_define_stays(tmp_path: Path) -> None:
    layers = [node("Neg", "x", "a"), node("Strange", "a", "y", domain="other")]
    source = saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])]))
    outcome, model = convert(source)
    assert list(outcome.notes) == ["kept in float32: n_y (no standard operator)"]
    assert types(model)["a"] == FP16
    assert [item.op_type for item in model.graph.node] == ["Cast", "Neg", "Cast", "Strange"]


def test_an_output_whose_type_is_an_attributes_stays(tmp_path: Path) -> None:
    fill = numpy_helper.from_array(np.float32([0.5]))
    layers = [
        node("Shape", "x", "shape"),
        node("ConstantOfShape", "shape", "halves", value=fill),
        node("Add", "x halves", "y"),
    ]
    _, model = convert(saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])])))
    assert computes_in(model, "n_halves") == FLOAT
    assert run(model, x=np.float32([1, 2]))[0].tolist() == [1.5, 2.5]


def test_a_filled_tensor_that_float16_cannot_hold(tmp_path: Path) -> None:
    fill = numpy_helper.from_array(np.float32([1e6]))
    layers = [
        node("Shape", "x", "shape"),
        node("ConstantOfShape", "shape", "many", value=fill),
        node("Mul", "x many", "a"),
        node("Tanh", "a", "b"),
        node("Neg", "b", "y"),
    ]
    outcome, model = convert(saved(tmp_path / "a", body(layers, [info("x", ["N"])], [info("y", ["N"])])))
    assert list(outcome.notes) == ["kept in float32: n_many, n_a, n_b (values fp16 cannot hold)"]
    assert run(model, x=np.float32([0, 1]))[0].tolist() == [0, -1]
