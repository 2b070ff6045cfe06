"""What operators may compute in 16-bit floats, and which had better not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

FLOAT = ir.DataType.FLOAT
_SCHEMA_TYPES = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}

# What PyTorch's autocast computes in float32 on CUDA (pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to
# float32"), by its ONNX names: sums lose small terms and overflow, exponentials overflow, normalisations do both. The
# means belong to decomposed normalisations. Maxima and minima are exact in any type.
_SENSITIVE = frozenset({
    "Acos", "Asin", "Cosh", "CumProd", "CumSum", "Exp", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "LpPool", "MeanVarianceNormalization", "Pow",
    "RMSNormalization", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Sinh", "Softmax", "Softplus", "Tan",
})  # fmt: skip

# The type of what they make is an attribute with a default of its own.
_GENERATORS = frozenset({"Bernoulli", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform"})

KEPT_OPS = _SENSITIVE | _GENERATORS | frozenset(DEFAULT_OP_BLOCK_LIST)
"""Operators that stay float32; ONNX Runtime's own list for float16 is among them."""

CARRIERS = frozenset({
    "Abs", "Add", "Clip", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal", "Relu", "Reshape",
    "ScatterElements", "ScatterND", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu",
    "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that hand a value beyond the 16-bit type's range on: moved, or made part of another one."""

ARITHMETIC = CARRIERS | {"Cast", "Ceil", "Cos", "Floor", "Mod", "Round", "Sin"}
"""Operators whose result on integers and constants alone is worth float32, and costs little."""

OTHER_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs within a Loop, If or Scan node."""
    return [item.as_graph() for item in node.attributes.values() if item.type == ir.AttributeType.GRAPH]


def schema(node: ir.Node, opsets: Mapping[str, int]) -> Any:
    """ONNX's definition of a node's operator, or None where it has none."""
    version = opsets.get(node.domain) or opsets.get(node.domain or "ai.onnx", 0)  # the standard domain has two names
    if not onnx.defs.has(node.op_type, version, node.domain):
        return None
    return onnx.defs.get_schema(node.op_type, version, node.domain)


def types(
    node: ir.Node, opsets: Mapping[str, int], floats: Sequence[bool], half: ir.DataType
) -> tuple[list[ir.DataType], list[ir.DataType]]:
    """Element types of a node's inputs and outputs when it computes in 16-bit floats as far as ONNX allows.

    An output is 16-bit where its type is that of a 16-bit input; where it is an attribute's, it stays float32. Types of
    tensors that are no floats mean nothing.

    Args:
        node: of a standard operator.
        opsets: version of the operators by domain.
        floats: which of the inputs are floats.
        half: the 16-bit type.
    """
    definition = schema(node, opsets)
    takes = [FLOAT] * len(node.inputs)
    makes = [FLOAT] * len(node.outputs)
    bound = set()  # letters of the definition that stand for the 16-bit type here
    for place, is_float in enumerate(floats):
        formal = definition.inputs[min(place, len(definition.inputs) - 1)]
        if is_float and _SCHEMA_TYPES[half] in formal.types:
            takes[place] = half
            bound.add(formal.type_str)
    for place in range(len(makes)):
        formal = definition.outputs[min(place, len(definition.outputs) - 1)]
        if formal.type_str in bound:
            makes[place] = half
    return takes, makes
