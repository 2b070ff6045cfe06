from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper

from pipeline.base.errors import StageError
from pipeline.formats.onnx import graph
from pipeline.precision import half, simulate
from tests.unit.precision.half_nets import (
    BF16,
    FLOAT,
    FP16,
    attention,
    bodies,
    body,
    close,
    conv_net,
    info,
    loops,
    node,
    run,
    saved,
    tokens,
    types,
)  # fmt: skip

DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
PRECISIONS = pytest.mark.parametrize("precision", DTYPES)
LEVELS = onnxruntime.GraphOptimizationLevel


def simulated(source: Path, precision: Any) -> Path:
    for name in ("half", "float"):
        (source.parent / name).mkdir()
    half.convert(source, source.parent / "half", precision=precision)
    return simulate.half(source.parent / "half" / graph.FILE, source.parent / "float")


@PRECISIONS
@pytest.mark.parametrize("level", [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL])
def test_every_tensor_is_rounded_at_every_level_of_optimisation(precision: str, level: Any, tmp_path: Path) -> None:
    """The rounding of each node's result shows in the answer; numpy gives the same bits."""
    layers = [
        node("Mul", "x w", "a"),
        node("Sub", "a x", "b"),
        node("Exp", "b", "c"),  # float32 on its own
        node("Neg", "c", "d"),
        node("Add", "d w", "y"),
    ]
    w = np.float32([1.0009, 3.14159])
    source = saved(tmp_path / "a", body(layers, [info("x", ["N", 2])], [info("y", ["N", 2])], w=w))
    path = simulated(source, precision)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)

    def rounded(array: Any) -> Any:
        return array.astype(DTYPES[precision]).astype(np.float32)

    a = rounded(rounded(x) * rounded(w))
    b = rounded(a - rounded(x))
    (found,) = session.run(None, {"x": x})
    expected = rounded(rounded(-np.exp(b)) + rounded(w))
    # exp differs by a bit between libraries, which may tip its rounding: one step of the 16-bit type
    step = 2.0 ** (-10 if precision == "fp16" else -7)
    assert np.abs(found - expected).max() <= step * np.abs(expected).max()
    assert (found == expected).mean() > 0.99
    assert (found == rounded(found)).all()
    assert (found == run(source, x=x)[0]).mean() < 0.05


def test_names_of_nodes_and_the_models_inputs_and_outputs_stay(tmp_path: Path) -> None:
    source = attention(tmp_path / "a")
    path = simulated(source, "bf16")
    before, after = graph.load(tmp_path / "a/half"), graph.load(path)
    names = [item.name for item in before.graph.node]
    assert [item.name for item in after.graph.node if "/" not in item.name] == names
    assert len({item.name for item in after.graph.node}) == len(after.graph.node)
    assert list(after.graph.input) == list(graph.load(source).graph.input)
    assert list(after.graph.output) == list(graph.load(source).graph.output)
    stored = [kind for name, kind in types(after).items() if not name.endswith("/rounded")]
    assert BF16 not in stored


def test_weights_hold_the_rounded_values(tmp_path: Path) -> None:
    w = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1e5])
    source = saved(tmp_path / "a", body([node("Mul", "x w", "y")], [info("x", [3])], [info("y", [3])], w=w))
    (tensor,) = graph.load(simulated(source, "bf16")).graph.initializer
    assert tensor.data_type == FLOAT
    assert numpy_helper.to_array(tensor).tolist() == [1, 1 + 2**-6, 99840]


@PRECISIONS
def test_nets_answer_nearly_as_in_float32(precision: str, tmp_path: Path) -> None:
    tolerance = {"fp16": 5e-3, "bf16": 5e-2}[precision]
    source = conv_net(tmp_path / "conv")
    x = np.random.default_rng(2).standard_normal((4, 3, 8, 8)).astype(np.float32)
    found, expected = run(simulated(source, precision), x=x)[0], run(source, x=x)[0]
    assert close(found, expected, tolerance)
    assert np.abs(found - expected).max() > tolerance / 100
    source = attention(tmp_path / "attention")
    path = simulated(source, precision)
    assert close(run(path, **tokens())[0], run(source, **tokens())[0], tolerance)


@PRECISIONS
def test_bodies_are_simulated(precision: str, tmp_path: Path) -> None:
    source = loops(tmp_path / "a")
    path = simulated(source, precision)
    loop = next(item for item in graph.load(path).graph.node if item.op_type == "Loop")
    found = types(bodies(loop)[0])
    assert found["state"] == found["doubled"] == FLOAT
    assert found["doubled/rounded"] == {"fp16": FP16, "bf16": BF16}[precision]
    x = np.float32([0.1, 0.3])
    assert close(run(path, x=x)[0], run(source, x=x)[0], {"fp16": 2e-3, "bf16": 3e-2}[precision])
    assert (run(path, x=x)[0] != run(source, x=x)[0]).any()


def test_weights_outside_the_file(tmp_path: Path) -> None:
    source = attention(tmp_path / "a")
    (tmp_path / "half").mkdir()
    half.convert(source, tmp_path / "half", precision="bf16")
    (tmp_path / "large").mkdir()
    graph.save(graph.load(tmp_path / "half"), tmp_path / "large", external_data_threshold_bytes=1000)
    (tmp_path / "float").mkdir()
    path = simulate.half(tmp_path / "large" / graph.FILE, tmp_path / "float")
    assert close(run(path, **tokens())[0], run(source, **tokens())[0], 5e-2)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    first, second = (simulated(loops(tmp_path / name), "bf16").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_model_with_16_bit_inputs_or_outputs_is_refused(place: str, tmp_path: Path) -> None:
    cast = {"input": ("x", "y", FP16, FLOAT, FLOAT), "output": ("x", "y", FLOAT, FP16, FP16)}[place]
    nodes = [node("Cast", cast[0], cast[1], to=cast[4])]
    source = saved(tmp_path / "a", body(nodes, [info("x", ["N"], cast[2])], [info("y", ["N"], cast[3])]))
    (tmp_path / "float").mkdir()
    with pytest.raises(StageError, match="inputs or outputs are 16-bit floats cannot be played") as raised:
        simulate.half(source, tmp_path / "float")
    assert raised.value.found == {"input": "x", "output": "y"}[place]
    assert not list((tmp_path / "float").iterdir())
