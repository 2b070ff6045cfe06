"""Building an engine, the same for every flavour. Imported by the child only, after it has chosen the library.

All flavours have one interface, and builder.py makes the chosen one answer to the name `tensorrt`. Precision lives in
the graph, so no flag here sets one. What a version may lack is looked for by name, never by version number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from pipeline.formats.tensorrt.engine_session import NUMPY, Profile
from pipeline.formats.tensorrt.failures import FailureError
from pipeline.formats.tensorrt.interface import Port
from pipeline.formats.tensorrt.spec import EngineSpec

_NUMPY = {"BF16": "bfloat16"} | {name: np.dtype(kind).name for name, kind in NUMPY.items()}
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_MOVES = ("SHUFFLE", "CAST", "QUANTIZE")  # between a weight and the layer that uses it
_SEVERITY_MARKS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_TOLD_ERRORS = 5


class Log(trt.ILogger):
    """Everything the library says, to standard output; its errors and the layer table are kept.

    Attributes:
        errors: texts of its errors, in order.
        table: the record that starts with ``Layers:``, or empty.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.table = ""

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by the library."""
        print(f"[{_SEVERITY_MARKS.get(severity.name, '?')}] {msg}", flush=True)
        if severity.name in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(msg)
        if msg.startswith("Layers:"):
            self.table = msg

    def last_errors(self) -> list[str]:
        """The errors that ended a build; without those of CUDA's absence, which only accompany another."""
        own = [text for text in self.errors if "catchCudaError" not in text]
        return (own or self.errors)[-_TOLD_ERRORS:] or ["it gave no reason"]


class Monitor(trt.IProgressMonitor):
    """Turns the library's nested phases into one share done, and tells of another phase or 1 % more."""

    def __init__(self, tell: Callable[[str, float], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._tell = tell
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done; outermost first
        self._share = 0.0
        self._last = ("", -1.0)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
        """Called by the library; ``num_steps`` is an int."""
        self._phases[phase_name] = (parent_phase, max(int(num_steps), 1), 0)
        self._told(phase_name)

    def step_complete(self, phase_name: str, step: Any) -> bool:
        """Called by the library; always says to go on."""
        parent, steps, _ = self._phases.get(phase_name, (None, 1, 0))
        self._phases[phase_name] = (parent, steps, int(step) + 1)
        self._told(phase_name)
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Called by the library."""
        self._phases.pop(phase_name, None)

    def _told(self, phase_name: str) -> None:
        roots = [name for name, (parent, _, _) in self._phases.items() if parent not in self._phases]
        self._share = max([self._share, *(min(self._done(name), 1.0) for name in roots)])
        if phase_name != self._last[0] or self._share >= self._last[1] + 0.01:
            self._last = (phase_name, self._share)
            self._tell(*self._last)

    def _done(self, name: str) -> float:
        _, steps, done = self._phases[name]
        inner = [self._done(other) for other, (parent, _, _) in self._phases.items() if parent == name]
        return (done + max(inner, default=0.0)) / steps


def make_builder(log: Log) -> trt.Builder:
    """The library's builder; a FailureError where it cannot start: for classic TensorRT, there is no GPU."""
    try:
        return trt.Builder(log)
    except TypeError as error:  # pybind11's "factory function returned nullptr"
        raise FailureError("gpu", *log.last_errors()) from error


def parse(builder: trt.Builder, log: Log, onnx: Path) -> trt.INetworkDefinition:
    """The network of an ONNX file, strongly typed: every tensor has the graph's type.

    Raises:
        FailureError: the parser refuses it, with every node at fault.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):  # by path: a graph over 2 GB cannot come as bytes
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        nodes = [
            {"name": item.node_name(), "op": item.node_operator(), "code": item.code().name, "reason": item.desc()}
            for item in errors
        ]
        raise FailureError("parse", *log.last_errors(), nodes=[node for node in nodes if node["name"] or node["op"]])
    return network


def ports(network: trt.INetworkDefinition) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of a network."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return [_port(tensor) for tensor in inputs], [_port(tensor) for tensor in outputs]


def products(network: trt.INetworkDefinition) -> list[str]:
    """Names of the ONNX nodes that are convolutions or matrix products."""
    return [_node_of(layer) for layer in _layers(network) if _is_product(layer)]


def quantized(network: trt.INetworkDefinition) -> list[str]:
    """Names of the ONNX nodes whose convolution or matrix product is of dequantised values and dequantised weights."""
    makers = {layer.get_output(index).name: layer for layer in _layers(network) for index in range(layer.num_outputs)}

    def source(tensor: trt.ITensor, through: tuple[str, ...]) -> trt.ILayer | None:
        layer = makers.get(tensor.name)
        while layer is not None and layer.type.name in through:
            layer = makers.get(layer.get_input(0).name)
        return layer

    def kinds(layer: trt.ILayer) -> list[str]:
        found = []
        for index in range(min(layer.num_inputs, 2)):
            maker = source(layer.get_input(index), ("SHUFFLE",))
            if maker is None or maker.type.name != "DEQUANTIZE":
                return []
            origin = source(maker.get_input(0), _MOVES)
            found.append("WEIGHT" if origin is not None and origin.type.name == "CONSTANT" else "VALUE")
        return sorted(found)

    return [_node_of(layer) for layer in _layers(network) if _is_product(layer) and kinds(layer) == ["VALUE", "WEIGHT"]]


def configure(builder: trt.Builder, spec: EngineSpec, tell: Callable[[str, float], None]) -> trt.IBuilderConfig:
    """A configuration with the spec's profiles and what every flavour has.

    Raises:
        FailureError: a setting or a profile is not possible.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the layer table
    config.progress_monitor = Monitor(tell)
    if spec.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    if spec.optimization_level is not None:
        config.builder_optimization_level = spec.optimization_level
    if (tf32 := getattr(trt.BuilderFlag, "TF32", None)) is not None:
        config.clear_flag(tf32)  # on by default, and float32 with 10 bits: fp32 shall be fp32
    if spec.weight_streaming:
        set_flag(config, "WEIGHT_STREAMING")
    for index, profile in enumerate(spec.profiles):
        if config.add_optimization_profile(_profile(builder, index, profile)) != index:
            raise FailureError("profile", f"optimization profile {index} was refused: {dict(profile)}")
    return config


def set_flag(config: trt.IBuilderConfig, name: str) -> None:
    """Set a builder flag by name; a FailureError where this flavour has none."""
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        raise FailureError("unsupported", f"the builder flag {name}")
    config.set_flag(flag)


def build(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, log: Log, plan: Path
) -> None:
    """Build the engine and write it to ``plan``; a FailureError where the builder makes none."""
    built: Any = builder.build_serialized_network(network, config)  # None when it fails, whatever the stubs say
    if built is None:
        raise FailureError("build", *log.last_errors())
    plan.write_bytes(memoryview(built))


def _profile(builder: trt.Builder, index: int, profile: Profile) -> trt.IOptimizationProfile:
    made = builder.create_optimization_profile()
    for name, shapes in profile.items():
        try:
            made.set_shape(name, *(trt.Dims(list(shape)) for shape in (shapes.min, shapes.opt, shapes.max)))
        except RuntimeError as error:
            raise FailureError(
                "profile", f"optimization profile {index} was refused: {name}: {shapes}: {error}"
            ) from error
    return made


def _layers(network: trt.INetworkDefinition) -> Iterator[trt.ILayer]:
    for index in range(network.num_layers):
        yield network.get_layer(index)


def _is_product(layer: trt.ILayer) -> bool:
    return layer.type.name in _PRODUCTS


def _node_of(layer: trt.ILayer) -> str:
    """The ONNX node a layer was made for."""
    match = _NODE.search(layer.metadata)
    return match[1] if match else layer.name


def _port(tensor: trt.ITensor) -> Port:
    sizes = tensor.shape
    shape = tuple(sizes[index] for index in range(len(sizes)))
    return Port(name=tensor.name, dtype=_NUMPY.get(tensor.dtype.name, tensor.dtype.name), shape=shape)
