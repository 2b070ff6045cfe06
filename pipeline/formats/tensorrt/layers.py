"""The layer table of a detailed build log: what an engine is made of, without a GPU to open it.

With detailed profiling verbosity the builder logs one record that starts with ``Layers:``. It holds every fused layer
with its type, the types of its tensors and the ONNX nodes it came from, then the engine's inputs and outputs. It
proves the types of tensors, not which kernel runs. Read from TensorRT-RTX 1.7.1; classic TensorRT 10's inspector
prints the same lines, with ``Format/Datatype`` for ``Datatype``, by public logs of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.formats.tensorrt.engine_session import OptimizationProfile, Shape
from pipeline.formats.tensorrt.interface import Port
from pipeline.schema.variants import Precision

TYPE_OF = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
"""What the table calls each precision."""

PRECISION_OF = {name: precision for precision, name in TYPE_OF.items()}

# The types arithmetic is done in, the narrowest first; the ranges of words in classic TensorRT's `Format/Datatype`.
_ARITHMETIC = {
    "FP4": r"FP4", "Int8": r"Int8", "FP8": r"FP8", "BFloat16": r"BFloat16|BF16", "Half": r"Half|FP16",
    "Float": r"Float|FP32",
}  # fmt: skip
_NUMPY = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Int8": "int8", "UInt8": "uint8",
    "Int32": "int32", "Int64": "int64", "Bool": "bool",
}  # fmt: skip

_TENSORS = r"(|.*?\})"
_LAYER = re.compile(
    rf"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: \[{_TENSORS}\], "
    rf"(?:Constants: \[{_TENSORS}\], )?Outputs: \[{_TENSORS}\],(?P<rest>.*)$"
)
_TENSOR = re.compile(r"\{ Name: .*?, (?:Location: [^,]*, )?Dimensions: \[([^\]]*)\], .*?[Dd]atatype: ([^,}]*)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f]|$)")
_PORT = re.compile(r"^ *Name: (.*), IOMode: (Input|Output), DataType: (\w+), Dimensions: \[([^\]]*)\],(.*)$")
_RANGE = re.compile(r"MinShape: \[([^\]]*)\], OptShape: \[([^\]]*)\], MaxShape: \[([^\]]*)\]")

# Layers that compute a convolution or a matrix product: TensorRT-RTX's own types, and words in classic TensorRT's.
# `runtime_fusion` was only seen for a product with what follows it, named `__myl_Fc…` or `__myl_Corr…`; attention is a
# generated kernel (`kgen`) named `_gemm_mha…`. Any other `kgen` moves and scales values, also for a convolution.
_PRODUCT_TYPE = re.compile(r"correlation|deconv|gemm|conv|matrixmultiply|runtime_fusion", re.IGNORECASE)
_PRODUCT_KERNEL = re.compile(r"_gemm|__myl_\w*?(?:Fc|Corr)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a layer: the library's name of its type (``Half``), and its dimensions; -1 where dynamic."""

    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One fused layer.

    Attributes:
        type: the library's name of what it is: ``correlation``, ``gemm``, ``kgen``, …
        nodes: names of the ONNX nodes it came from.
    """

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Whether it computes a convolution or a matrix product."""
        return bool(_PRODUCT_TYPE.search(self.type) or _PRODUCT_KERNEL.match(self.name))

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """Types of what it multiplies, the narrowest first: its inputs and its weights.

        The weights are the largest constant; scales and biases are smaller, and Float whatever the weights are.
        """
        found = {tensor.dtype for tensor in self.inputs}
        weights = max(self.constants, key=lambda tensor: math.prod(tensor.shape), default=None)
        if weights is not None and math.prod(weights.shape) > 1:
            found.add(weights.dtype)
        return tuple(name for name in _ARITHMETIC if name in found)

    @property
    def dtype(self) -> str:
        """The one type it is counted under; empty for a layer without tensors."""
        if self.is_product and self.arithmetic:
            return self.arithmetic[0]
        return next((tensor.dtype for tensor in (*self.outputs, *self.inputs)), "")

    def __str__(self) -> str:
        """Its name, type, arithmetic and origin, for a person."""
        origin = f", from {', '.join(self.nodes[:3])}" if self.nodes else ""
        return f"{self.name} ({self.type}) in {'/'.join(self.arithmetic) or 'no arithmetic type'}{origin}"


def parse(record: str) -> tuple[Layer, ...]:
    """The layers of a ``Layers:`` record; none when it holds no such lines."""
    return tuple(
        Layer(
            name=match["name"],
            type=match["type"],
            inputs=_tensors(match[3]),
            constants=_tensors(match[4]),
            outputs=_tensors(match[5]),
            nodes=tuple(_NODE.findall(match["rest"].partition("Metadata: ")[2])),
        )
        for line in record.split("\n")
        if (match := _LAYER.match(line))
    )


def ports(record: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The engine's inputs and outputs by the record; none of either when it does not list them."""
    found: dict[str, list[Port]] = {"Input": [], "Output": []}
    for line in record.split("\n"):
        if match := _PORT.match(line):
            name, mode, dtype, shape, rest = match.groups()
            ranges = tuple(
                OptimizationProfile(min=_shape(low), opt=_shape(best), max=_shape(high))
                for low, best, high in _RANGE.findall(rest)
            )
            found[mode].append(Port(name=name, dtype=_NUMPY.get(dtype, dtype), shape=_shape(shape), profiles=ranges))
    return tuple(found["Input"]), tuple(found["Output"])


def counts(layers: Sequence[Layer]) -> dict[str, int]:
    """How many layers there are of each type of values, ``{"Half": 21, "Float": 2}``, in alphabetical order."""
    return dict(sorted(Counter(layer.dtype for layer in layers if layer.dtype).items()))


def summary(layers: Sequence[Layer]) -> dict[str, dict[str, int]]:
    """The same for each type of layer: ``{"correlation": {"Half": 20}, …}``; equal for builds of the same graph."""
    types = sorted({layer.type for layer in layers if layer.dtype})
    return {kind: counts([layer for layer in layers if layer.type == kind]) for kind in types}


def product_counts(kinds: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Of a ``summary``: the layers whose type says that they compute a convolution or a matrix product."""
    total: Counter[str] = Counter()
    for kind, found in kinds.items():
        if _PRODUCT_TYPE.search(kind):
            total.update(found)
    return dict(total)


def judge(
    layers: Sequence[Layer], precision: Precision, *, kept: Collection[str] = (), quantized: Collection[str] = ()
) -> list[str]:
    """What in an engine is not in the precision asked for; nothing when it is as asked.

    Args:
        layers: of the engine.
        precision: what the graph was said to be. ``fp16`` and ``bf16``: no convolution or matrix product in another
            type, and some layer in that type. ``int8``: at least one in Int8, and all of ``quantized``. ``fp32``: none
            in a narrower type.
        kept: names of ONNX nodes that were left in a higher precision on purpose.
        quantized: names of the ONNX nodes whose operands are both dequantised in the graph.

    Returns:
        One line per layer or node at fault, naming it.
    """
    products = [layer for layer in layers if layer.is_product and layer.arithmetic]
    asked = TYPE_OF[precision]
    if precision == "fp32":
        return [str(layer) for layer in products if layer.arithmetic != ("Float",)]
    if precision == "int8":
        return _judge_int8(products, quantized)
    wrong = [str(layer) for layer in products if asked not in layer.arithmetic and not _kept(layer, kept)]
    tensors = {tensor.dtype for layer in layers for tensor in (*layer.inputs, *layer.constants, *layer.outputs)}
    return wrong if wrong or asked in tensors else [f"no layer has a tensor in {asked}"]


def narrowed(layers: Sequence[Layer], kept: Collection[str]) -> list[str]:
    """Those of the products kept on purpose (by names of ONNX nodes) that the engine does not compute in Float, sorted.

    TensorRT-RTX 1.7.1 narrows a convolution or matrix product that stands alone between a cast to float and a cast
    back, weights included; with one more node in float beside it, it does not.
    """
    products = [layer for layer in layers if layer.is_product and layer.arithmetic]
    in_float = {node for layer in products if "Float" in layer.arithmetic for node in layer.nodes}
    return sorted({node for layer in products for node in layer.nodes if node in kept} - in_float)


def _judge_int8(products: Sequence[Layer], quantized: Collection[str]) -> list[str]:
    in_int8 = {node for layer in products if "Int8" in layer.arithmetic for node in layer.nodes}
    if not any("Int8" in layer.arithmetic for layer in products):
        return [str(layer) for layer in products] or ["the engine has no convolution and no matrix product"]
    return [f"node {name} is quantised in the graph and not in the engine" for name in quantized if name not in in_int8]


def _kept(layer: Layer, kept: Collection[str]) -> bool:
    """Whether a layer comes from a node kept on purpose.

    A recurrent node (LSTM) becomes layers that name no node; where anything was kept, they get the benefit of it.
    """
    return any(node in kept for node in layer.nodes) if layer.nodes else bool(kept)


def _tensors(text: str | None) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype=_dtype(words), shape=_shape(shape)) for shape, words in _TENSOR.findall(text or ""))


def _dtype(words: str) -> str:
    """The type in a ``Datatype``, or in classic TensorRT's ``Row major linear FP16 format``."""
    bare = words.strip()
    if bare in _NUMPY:
        return bare
    return next((name for name, pattern in _ARITHMETIC.items() if re.search(rf"\b(?:{pattern})\b", bare)), bare)


def _shape(text: str) -> Shape:
    return tuple(int(size) for size in text.split(",") if size.strip())
