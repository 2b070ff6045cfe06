from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.base.errors import StageError
from pipeline.base.values import Runtime, Signature, TensorSpec
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.formats.torchscript.runtime import TorchScriptRuntime


def signature(*outputs: str, dtype: str = "float32", inputs: tuple[str, ...] = ("a", "b")) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=("N", 2)) for name in inputs),
        outputs=tuple(TensorSpec(name=name, dtype=dtype, shape=("N", 2)) for name in outputs),
        batch="N",
    )


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """Sum = a + b, difference = a - b."""
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("a", "b", "s", "d")}
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Sub", ["a", "b"], ["d"])]
    graph = helper.make_graph(nodes, "g", [values["a"], values["b"]], [values["s"], values["d"]])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


class SumDifference(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


@pytest.fixture
def torchscript_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.save(torch.jit.script(SumDifference()), str(path))
    return path


Opener = Callable[[Signature], Runtime]


@pytest.fixture(params=["onnxruntime", "torchscript"])
def opened(request: pytest.FixtureRequest) -> Opener:
    if request.param == "onnxruntime":
        path = request.getfixturevalue("onnx_file")
        return lambda model_signature: OnnxRuntime(path, model_signature, threads=1)
    path = request.getfixturevalue("torchscript_file")
    return lambda model_signature: TorchScriptRuntime(path, model_signature)


A, B = np.float32([[5, 7]]), np.float32([[1, 2]])


def test_outputs_by_name(opened: Opener) -> None:
    outputs = opened(signature("s", "d")).run({"b": B, "a": A})
    assert outputs["s"].tolist() == [[6, 9]]
    assert outputs["d"].tolist() == [[4, 5]]
    assert outputs["s"].dtype == np.float32


def test_inputs_are_left_alone(opened: Opener) -> None:
    a = A.copy()
    a.flags.writeable = False
    opened(signature("s", "d")).run({"a": a, "b": B})
    assert (a == A).all()


def test_other_input_names(opened: Opener) -> None:
    with pytest.raises(StageError, match="the file's inputs are not the configuration's") as raised:
        opened(signature("s", "d", inputs=("a", "image")))
    assert raised.value.found == "a, b; expected a, image"


def test_a_refused_shape(opened: Opener) -> None:
    with pytest.raises(StageError, match="the model failed on a sample") as raised:
        opened(signature("s", "d")).run({"a": np.ones((1, 3), np.float32), "b": B})
    assert raised.value.hint == "inputs were a float32[1, 3], b float32[1, 2]"
    assert raised.value.found


def test_another_output_dtype(opened: Opener) -> None:
    with pytest.raises(StageError, match="output s is float32") as raised:
        opened(signature("s", "d", dtype="float64")).run({"a": A, "b": B})
    assert raised.value.found == "`outputs.s.dtype` says float64"
    assert raised.value.hint == "write dtype: float32"


def test_other_onnx_output_names(onnx_file: Path) -> None:
    with pytest.raises(StageError, match="the file's outputs are not the configuration's"):
        OnnxRuntime(onnx_file, signature("s", "other"))


def test_another_number_of_torchscript_outputs(torchscript_file: Path) -> None:
    with pytest.raises(StageError, match="returned 2 outputs") as raised:
        TorchScriptRuntime(torchscript_file, signature("s")).run({"a": A, "b": B})
    assert raised.value.found == "expected s"


def test_an_onnx_directory(onnx_file: Path) -> None:
    assert OnnxRuntime(onnx_file.parent, signature("s", "d")).run({"a": A, "b": B})["s"].tolist() == [[6, 9]]


@pytest.mark.parametrize("runtime", [OnnxRuntime, TorchScriptRuntime])
def test_a_damaged_or_missing_file(runtime: type, tmp_path: Path) -> None:
    path = tmp_path / "model"
    for _ in range(2):
        with pytest.raises(StageError, match="cannot load the model") as raised:
            runtime(path, signature("s", "d"))
        assert raised.value.where == str(path)
        path.write_bytes(b"not a model" * 50)


def test_a_file_of_torch_save_is_explained(tmp_path: Path) -> None:
    torch.save(SumDifference().state_dict(), tmp_path / "model.pt")
    with pytest.raises(StageError) as raised:
        TorchScriptRuntime(tmp_path / "model.pt", signature("s", "d"))
    assert "not of torch.save" in raised.value.hint


class Refuses(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if float(a.sum()) > 0:
            raise ValueError("a must not be positive")
        return a, b


def test_a_module_that_raises_by_itself(tmp_path: Path) -> None:
    """TorchScript's own exceptions are no RuntimeError (torch.jit.Error, torch 2.13)."""
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.save(torch.jit.script(Refuses()), str(tmp_path / "model.pt"))
    with pytest.raises(StageError, match="the model failed on a sample") as raised:
        TorchScriptRuntime(tmp_path / "model.pt", signature("s", "d")).run({"a": A, "b": B})
    assert "a must not be positive" in raised.value.found
