from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.base.errors import StageError
from pipeline.base.values import Array
from pipeline.precision import modelopt, qdq
from tests.unit.precision.nets import convnet, quantize


@pytest.fixture(autouse=True)
def _no_modelopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelopt, "version", lambda: None)


def spoiled(model: onnx.ModelProto, name: str, array: Array) -> onnx.ModelProto:
    tensor = next(item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x_scale", np.float32(0), "scale 0.0 to 0.0; expected constants over 0"),
        ("x_scale", np.float32(np.nan), "scale nan to nan"),
        ("w1_scale", np.float32([1, 1, 1, -1, 1, 1]), "scale -1.0 to 1.0"),
        ("r1_scale", np.float32(np.inf), "scale inf to inf"),
        ("x_zero_point", np.int8(3), "zero point 3; expected 0"),
        ("x_zero_point", np.int32(0), "type int32; expected int8"),
    ],
)
def test_a_corrupt_scale_or_zero_point_is_found(tmp_path: Path, name: str, array: Array, message: str) -> None:
    model, _ = quantize(tmp_path)
    assert qdq.check(model, convnet(), "S8S8") == 3
    with pytest.raises(StageError, match="scales or zero points") as raised:
        qdq.check(spoiled(model, name, np.asarray(array)), convnet(), "S8S8")
    assert message in raised.value.found
    assert "quantizeLinear: " in raised.value.found.replace("Q", "q")


def test_a_scale_that_is_not_constant_is_found(tmp_path: Path) -> None:
    model, _ = quantize(tmp_path)
    next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[1] = "r1"
    with pytest.raises(StageError, match="scales or zero points"):
        qdq.check(model, convnet(), "S8S8")


def test_another_interface_is_found(tmp_path: Path) -> None:
    model, _ = quantize(tmp_path)
    model.graph.output[0].name = "z"
    with pytest.raises(StageError, match="changed the inputs or outputs") as raised:
        qdq.check(model, convnet(), "S8S8")
    assert "('z', 1)" in raised.value.found


def test_fp32_is_not_int8() -> None:
    with pytest.raises(StageError, match="no Conv, Gemm or MatMul"):
        qdq.check(convnet(), convnet(), "U8S8")
