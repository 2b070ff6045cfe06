"""Tiny ONNX and TorchScript models, and repositories made of them, for tests that serve.

Every model is a line of arithmetic, so that the expected answer is written next to the question.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 9
Shape = Sequence[int | str]
ONNX_DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "string": TensorProto.STRING,
}
TRITON_DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "string": "TYPE_STRING",
}


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[str, Shape]],
    outputs: Mapping[str, tuple[str, Shape]],
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A checked model of one graph; inputs and outputs are ``name: (numpy dtype, shape)``."""

    def values(tensors):
        return [
            helper.make_tensor_value_info(name, ONNX_DTYPES[dtype], list(shape))
            for name, (dtype, shape) in tensors.items()
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def scale_onnx(factor: float = 2.0, *, shape: Shape = ("N", 3), dtype: str = "float32") -> onnx.ModelProto:
    """y = factor * x."""
    return onnx_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        {"x": (dtype, shape)},
        {"y": (dtype, shape)},
        {"factor": np.array(factor, dtype)},
    )


def masked_sum_onnx() -> onnx.ModelProto:
    """int64 ids and mask [N, L] in; total [N, 1] = sum over L of ids * mask, and the share of ones, out."""
    return onnx_model(
        [
            helper.make_node("Mul", ["ids", "mask"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["total"], keepdims=1),
            helper.make_node("Cast", ["mask"], ["mask_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["mask_float", "axis"], ["share"], keepdims=1),
        ],
        {"ids": ("int64", ("N", "L")), "mask": ("int64", ("N", "L"))},
        {"total": ("int64", ("N", 1)), "share": ("float32", ("N", 1))},
        {"axis": np.array([1], np.int64)},
    )


def row_sum_onnx() -> onnx.ModelProto:
    """total [L] of x [L, 4]: a model without a batch dimension."""
    return onnx_model(
        [helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0)],
        {"x": ("float32", ("L", 4))},
        {"total": ("float32", ("L",))},
        {"axis": np.array([1], np.int64)},
    )


def gather_onnx() -> onnx.ModelProto:
    """y = table[i] for i of shape [N, 1] and a table of four rows: fails when it runs on i > 3."""
    return onnx_model(
        [helper.make_node("Gather", ["table", "i"], ["rows"]), helper.make_node("Squeeze", ["rows", "axis"], ["y"])],
        {"i": ("int64", ("N", 1))},
        {"y": ("float32", ("N", 2))},
        {"table": np.arange(8, dtype=np.float32).reshape(4, 2), "axis": np.array([1], np.int64)},
    )


def join_strings_onnx() -> onnx.ModelProto:
    """y = a + b for strings of shape [N, 1]."""
    return onnx_model(
        [helper.make_node("StringConcat", ["a", "b"], ["y"])],
        {"a": ("string", ("N", 1)), "b": ("string", ("N", 1))},
        {"y": ("string", ("N", 1))},
    )


class Scale(torch.nn.Module):
    """y = 2 * x, for tensors of any shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


class Affine(torch.nn.Module):
    """(scale * x + shift, x - shift): two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0), requires_grad=False)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale * x + shift, x - shift


class DictSum(torch.nn.Module):
    """x + shift, taken from one dict of tensors."""

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return tensors["x"] + tensors["shift"]


class Loop(torch.nn.Module):
    """Doubles x as often as ``times`` says: control flow that a trace would freeze."""

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        for _ in range(int(times.max())):
            x = x * 2.0
        return x


class Failing(torch.nn.Module):
    """Fails on negative input; otherwise an int64 output where float32 may be promised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise ValueError("negative input")
        return x.to(torch.int64)


class TakesNumber(torch.nn.Module):
    """A forward argument that is not a tensor."""

    def forward(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor


class ReturnsDict(torch.nn.Module):
    """A result the pytorch backend does not take."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}


class ReturnsScalar(torch.nn.Module):
    """A result without dimensions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def save_script(module: torch.nn.Module, path: Path) -> None:
    """Write a module as TorchScript."""
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated; Triton's pytorch backend reads nothing else
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), str(path))


def tensor_text(name: str, dtype: str, dims: Sequence[int], extra: str = "") -> str:
    """One tensor of a config.pbtxt, without the field's name; ``dtype`` is numpy's, or Triton's TYPE_…."""
    return f'{{ name: "{name}" data_type: {TRITON_DTYPES.get(dtype, dtype)} dims: {list(dims)} {extra} }}'


def config_text(
    platform: str, *, inputs: Sequence[str], outputs: Sequence[str], max_batch_size: int = 8, extra: str = ""
) -> str:
    """A complete config.pbtxt; ``inputs`` and ``outputs`` come from ``tensor_text``."""
    backend = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "pytorch"}[platform]
    group = "" if "instance_group" in extra else "instance_group { count: 1 kind: KIND_CPU }"
    return "\n".join(
        [
            f'platform: "{platform}"',
            f'backend: "{backend}"',
            f"max_batch_size: {max_batch_size}",
            *(f"input {text}" for text in inputs),
            *(f"output {text}" for text in outputs),
            group,
            extra,
        ]
    )


def add_model(
    repository: Path,
    name: str,
    config: str,
    model: onnx.ModelProto | torch.nn.Module | bytes | None,
    *,
    file: str | None = None,
    version: int = 1,
) -> Path:
    """Write one model into a repository; return its version directory.

    Args:
        repository: root; made if absent.
        name: the model's folder.
        config: text of config.pbtxt.
        model: what goes into the model file: a model, raw bytes, or None for no file.
        file: path of the model file within the version directory; default by kind.
        version: the version directory's number.
    """
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    default = "model.pt" if isinstance(model, torch.nn.Module) else "model.onnx"
    path = folder / (file or default)
    path.parent.mkdir(exist_ok=True)
    if isinstance(model, bytes):
        path.write_bytes(model)
    elif isinstance(model, torch.nn.Module):
        save_script(model, path)
    elif model is not None:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return folder


def add_scale(repository: Path, name: str, *, extra: str = "", factor: float = 2.0) -> Path:
    """A batched ONNX model, y = factor * x of shape [N, 3], with dynamic batching."""
    config = config_text(
        "onnxruntime_onnx",
        inputs=[tensor_text("x", "float32", [3])],
        outputs=[tensor_text("y", "float32", [3])],
        extra=extra or "dynamic_batching { }",
    )
    return add_model(repository, name, config, scale_onnx(factor))
