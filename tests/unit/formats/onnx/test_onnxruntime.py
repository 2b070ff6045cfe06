from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.onnx.onnxruntime import OnnxRuntime

XY = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)),),
    batch="N",
)


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    """x, rounded to 0…255, times 127 everywhere, by way of QuantizeLinear and DequantizeLinear.

    Pairs of such products leave the 16 bits in which a CPU without VNNI adds them.
    """
    tensors = [
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.uint8(0), "unsigned"),
        numpy_helper.from_array(np.int8(0), "signed"),
        numpy_helper.from_array(np.full((4, 2), 127, np.int8), "w"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "unsigned"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "unsigned"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "one", "signed"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


def test_quantised_values_in_float_arithmetic(quantised: Path) -> None:
    """On a CPU with VNNI this holds with 8-bit arithmetic too; the next test does not depend on the CPU."""
    x = np.float32([[255.4, 255, 255, 254.6], [1, 2.5, 3.5, 300]])
    y = OnnxRuntime(quantised, XY, float_qdq=True).run({"x": x})["y"]
    assert y.tolist() == [[127 * 1020.0] * 2, [127 * (1 + 2 + 4 + 255.0)] * 2]


@pytest.mark.parametrize("float_qdq", [False, True])
def test_only_on_demand(float_qdq: bool, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Written(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, file: str, options: Any, **others: Any) -> None:
            options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
            super().__init__(file, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Written)
    OnnxRuntime(quantised, XY, float_qdq=float_qdq)
    ops = {node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node}
    assert ("MatMul" in ops, "MatMulIntegerToFloat" in ops) == (float_qdq, not float_qdq)
