"""A graph's inputs and outputs against the YAML's: names, dtypes, and which dimensions are dynamic."""

from __future__ import annotations

import numpy as np
import onnx

from pipeline.base.ports import Port, differences, same_names
from pipeline.base.values import Signature

_UNDEFINED = "undefined"  # what is no tensor, a sequence for example


def ports(model: onnx.ModelProto) -> tuple[list[Port], list[Port]]:
    """A graph's inputs, without those that have a value already, and its outputs."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in initializers]
    return [_port(item) for item in inputs], [_port(item) for item in model.graph.output]


def problem(model: onnx.ModelProto, signature: Signature) -> str:
    """Why a graph is not what the YAML promises, or empty.

    Names may come in any order; dtypes must agree; where the graph has a number, the YAML must have it too: a letter
    there would be a frozen size.
    """
    for side, found, specs in zip(
        ("input", "output"), ports(model), (signature.inputs, signature.outputs), strict=True
    ):
        names = [port.name for port in found]
        if not same_names(names, specs):
            return f"its {side}s are {', '.join(names) or 'none'}, not {', '.join(spec.name for spec in specs)}"
        for item in differences(found, specs):
            if item.kind == "dtype":
                return f"{side} {item.name} is {_onnx_name(item.found)}, not {_onnx_name(item.expected)}"
            return f"{side} {item.name} has shape {item.found}, not {item.expected}"
        if bare := [port.name for port in found if port.shape is None and side == "input"]:
            return f"input {bare[0]} has no shape"
    return ""


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


def _port(item: onnx.ValueInfoProto) -> Port:
    tensor = item.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else _UNDEFINED
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    return Port(name=item.name, dtype=dtype, shape=tuple(dims) if tensor.HasField("shape") else None)


def _onnx_name(dtype: str) -> str:
    if dtype == _UNDEFINED:
        return dtype.upper()
    return str(onnx.TensorProto.DataType.Name(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))
