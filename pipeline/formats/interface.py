"""A graph's inputs and outputs against the YAML's: names, dtypes, and which dimensions are dynamic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from pipeline.base.values import NUMPY_DTYPES, Signature, TensorSpec


def problem(model: onnx.ModelProto, signature: Signature) -> str:
    """Why a graph is not what the YAML promises, or empty.

    Names may come in any order; dtypes must agree; where the graph has a number, the YAML must have it too: a letter
    there would be a frozen size.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in initializers]
    return _side("input", inputs, signature.inputs) or _side("output", list(model.graph.output), signature.outputs)


def name_dimensions(model: onnx.ModelProto, signature: Signature) -> None:
    """Write the YAML's shapes over the graph's, letters as symbolic names; ``problem`` has found them compatible."""
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    for item in (*model.graph.input, *model.graph.output):
        shape = item.type.tensor_type.shape
        del shape.dim[:]
        for dim in specs[item.name].shape:
            if isinstance(dim, str):
                shape.dim.add().dim_param = dim
            else:
                shape.dim.add().dim_value = dim


def _side(what: str, found: Sequence[onnx.ValueInfoProto], specs: Sequence[TensorSpec]) -> str:
    by_name = {item.name: item for item in found}
    if set(by_name) != {spec.name for spec in specs}:
        wanted = ", ".join(spec.name for spec in specs)
        return f"its {what}s are {', '.join(by_name) or 'none'}, not {wanted}"
    return next((reason for spec in specs if (reason := _tensor(what, by_name[spec.name], spec))), "")


def _tensor(what: str, item: onnx.ValueInfoProto, spec: TensorSpec) -> str:
    tensor = item.type.tensor_type
    expected = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_DTYPES[spec.dtype]))
    if tensor.elem_type != expected:
        names = onnx.TensorProto.DataType
        return f"{what} {spec.name} is {names.Name(tensor.elem_type)}, not {names.Name(expected)}"
    if not tensor.HasField("shape"):
        return "" if what == "output" else f"{what} {spec.name} has no shape"
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    if len(dims) != len(spec.shape):
        return f"{what} {spec.name} has shape {_written(dims)}, not {_written(spec.shape)}"
    if any(isinstance(dim, int) and dim != wanted for dim, wanted in zip(dims, spec.shape, strict=True)):
        return f"{what} {spec.name} has shape {_written(dims)}, not {_written(spec.shape)}"
    return ""


def _written(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
