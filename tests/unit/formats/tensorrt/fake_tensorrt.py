"""A stand-in for TensorRT and for CUDA's runtime, for code that otherwise needs a GPU: the device's memory is ours."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
PLAN = b"the engine"


class Port(NamedTuple):
    """An input or output; ``profiles`` holds (min, opt, max) of an input for each profile."""

    name: str
    kind: str
    shape: tuple[int, ...]
    profiles: tuple[Any, ...] = ()
    is_shape: bool = False
    layout: str = "LINEAR"


class Engine:
    """What the library gives for ``PLAN``: ports, and the function of arrays it computes."""

    def __init__(self, inputs: list[Port], outputs: list[Port], compute: Callable[..., Mapping[str, Any]]) -> None:
        self.inputs, self.outputs, self.compute = inputs, outputs, compute
        self.ports = {port.name: port for port in (*inputs, *outputs)}
        self.num_io_tensors = len(self.ports)
        self.num_optimization_profiles = max([1, *(len(port.profiles) for port in inputs)])
        self.contexts: list[Context] = []
        self.works = True
        self.raising: set[str] = set()  # calls that fail as the bindings do: with RuntimeError

    def refuse(self, call: str, text: str) -> None:
        if call in self.raising:
            raise RuntimeError(text)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if self.ports[name] in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.ports[name].kind)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.ports[name].shape

    def get_tensor_format(self, name: str) -> Any:
        return SimpleNamespace(name=self.ports[name].layout)

    def is_shape_inference_io(self, name: str) -> bool:
        return self.ports[name].is_shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.ports[name].profiles[profile]

    def create_execution_context(self) -> Any:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.engine.refuse("set_optimization_profile_async", "Error in set optimization profile async.")
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        spans = self.engine.ports[name].profiles
        low, _, high = spans[self.profile] if spans else (self.engine.ports[name].shape,) * 3
        return all(small <= size <= large for small, size, large in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def infer_shapes(self) -> list[str]:
        self.engine.refuse("infer_shapes", "infer_shapes error code: -1")
        return [port.name for port in self.engine.inputs if port.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """-1 in an output's shape is the first input's size there; -2 is known after the run only."""
        first = self.shapes[self.engine.inputs[0].name]
        sizes = enumerate(self.engine.ports[name].shape)
        return tuple({-1: first[axis] if axis < len(first) else 0, -2: -1}.get(size, size) for axis, size in sizes)

    def execute_async_v3(self, stream: int) -> bool:
        inputs = {}
        for port in self.engine.inputs:
            shape, dtype = self.shapes[port.name], np.dtype(NUMPY[port.kind])
            data = ctypes.string_at(self.addresses[port.name], int(np.prod(shape)) * dtype.itemsize)
            inputs[port.name] = np.frombuffer(data, dtype).reshape(shape)
        for name, value in self.engine.compute(**inputs).items():
            array = np.asarray(value, NUMPY[self.engine.ports[name].kind], order="C")
            if name in self.allocators:
                allocator = self.allocators[name]
                self.addresses[name] = allocator.reallocate_output_async(name, 0, array.nbytes, 256, stream)
                allocator.notify_shape(name, array.shape)
            assert array.shape == self.get_tensor_shape(name) or name in self.allocators
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        return self.engine.works


class Cuda(ModuleType):
    """CUDA's runtime: ``memory`` holds what is allocated, ``failing`` the error by call, ``device`` the one chosen."""

    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, Any] = {}
        self.failing: dict[str, int] = {}
        self.device, self.streams = -1, 0

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        self.device = device
        return (self.failing.get("cudaSetDevice", 0),)

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, ...]:  # noqa: N802
        return 0, attribute

    def cudaGetErrorString(self, status: int) -> tuple[Any, ...]:  # noqa: N802
        return 0, b"the reason"

    def cudaStreamCreate(self) -> tuple[Any, ...]:  # noqa: N802
        self.streams += 1
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        return (self.failing.get("cudaStreamSynchronize", 0),)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        if status := self.failing.get("cudaMalloc", 0):
            return status, None
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:  # noqa: N802
        on_device = to if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert size <= len(self.memory[on_device])
        ctypes.memmove(to, source, size)
        return (0,)


class Logger:
    """The base class of both loggers; the code under test derives from it."""


class Allocator:
    """The base class of output allocators."""


def library(engine: Engine) -> ModuleType:
    """A flavour's module, which knows one engine."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            assert self.engine_host_code_allowed
            if plan == PLAN:
                return engine
            self._log.log(SimpleNamespace(name="INFO"), "Loaded engine size: 0 MiB")
            self._log.log(SimpleNamespace(name="ERROR"), "the plan was made by another version")
            return None

    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.__dict__.update(ILogger=Logger, IOutputAllocator=Allocator, Runtime=Runtime)
    return module


def install(patch: pytest.MonkeyPatch, engine: Engine, flavour: str = "tensorrt") -> Cuda:
    """Let imports find the stand-ins; returns CUDA's."""
    cuda = Cuda()
    patch.setitem(sys.modules, flavour, library(engine))
    patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda
