"""A TensorRT engine opened on a GPU and run, the same for both flavours, through the CUDA runtime of cuda-bindings.

Triton's Python stub loads this file too, where this project's package cannot be imported: it imports nothing of it.
Written against the bindings of TensorRT 10.16.1, 11.4.0 and TensorRT-RTX 1.7.1 and against cuda-bindings 12.9 and 13.4;
what needs a GPU was never run where this was written, for want of one.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tensorrt as trt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

NUMPY: Mapping[str, type[np.generic]] = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32,
    "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip
"""Of TensorRT's data types those that numpy has too."""
# cudaError_t: InsufficientDriver (no driver, too), NoDevice, InvalidDevice, SystemDriverMismatch and
# CompatNotSupportedOnDevice
_NO_DEVICE = (35, 100, 101, 803, 804)
_TOLD_ERRORS = 5


class SessionError(Exception):
    """An engine cannot be opened or run; the text is the library's."""


class UnavailableError(SessionError):
    """This machine lacks what an engine runs on: a GPU, its driver, or a library."""


class Tensor(NamedTuple):
    """One input or output of an engine.

    Attributes:
        kind: TensorRT's name of its data type: ``FLOAT``.
        shape: -1 for a dynamic dimension.
        is_shape: its values are read where shapes are worked out, so they must lie in the host's memory.
        is_linear: its elements lie in row-major order, without gaps.
    """

    name: str
    kind: str
    shape: Shape
    is_shape: bool
    is_linear: bool


class OptimizationProfile(NamedTuple):
    """The shapes of one input that an engine takes, batch included, and the one it is made for."""

    min: Shape
    opt: Shape
    max: Shape


Profile = Mapping[str, OptimizationProfile]
"""One range for every input, by its name."""


def misfit(shape: Shape, span: OptimizationProfile) -> str:
    """Why a shape is not in a range, in the words of Triton's tensorrt backend (r24.10); empty when it is.

    A dimension of -1 is in every range.
    """
    if len(shape) != len(span.max):
        return f"model expected {len(span.max)} dimensions but received {len(shape)} dimensions"
    for axis, (size, low, high) in enumerate(zip(shape, span.min, span.max, strict=True)):
        if size != -1 and not low <= size <= high:
            return f"model expected the shape of dimension {axis} to be between {low} and {high} but received {size}"
    return ""


def fitting(profiles: Mapping[int, Profile], shapes: Mapping[str, Shape]) -> int | None:
    """The profile that takes these shapes and, of several, is made for the nearest (the sum over all dimensions)."""

    def distance(index: int) -> int:
        profile = profiles[index]
        pairs = [pair for name, shape in shapes.items() for pair in zip(shape, profile[name].opt, strict=True)]
        return sum(abs(size - best) for size, best in pairs)

    takes = [
        index
        for index, profile in profiles.items()
        if not any(misfit(shape, profile[name]) for name, shape in shapes.items())
    ]
    return min(takes, key=distance, default=None)


def compute_capability(device: int = 0) -> str:
    """A GPU's compute capability: ``8.9``.

    Raises:
        UnavailableError: no such GPU, no driver, or no bindings to ask with.
    """
    cuda = _use(device)
    names = cuda.cudaDeviceAttr
    attributes = (names.cudaDevAttrComputeCapabilityMajor, names.cudaDevAttrComputeCapabilityMinor)
    return ".".join(str(_done(cuda, cuda.cudaDeviceGetAttribute(attribute, device))) for attribute in attributes)


class Session:
    """An engine on a GPU; it and its memory are given back with this object.

    Args:
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        plan: the engine's file.
        device: the GPU's index, among those that CUDA sees.

    Attributes:
        inputs: in the engine's order.
        outputs: likewise.
        profiles: its optimization profiles, at least one, by index.

    Raises:
        UnavailableError: no such GPU, no driver, or a library is missing.
        SessionError: the library does not take the engine.
    """

    def __init__(self, flavour: str, plan: bytes, device: int = 0) -> None:
        self._library = library((flavour, f"{flavour}_bindings"))
        self._cuda = _use(device)
        self._log = _log(self._library)
        self._runtime: trt.Runtime = self._library.Runtime(self._log)
        # A version-compatible engine brings its own runtime; Triton's backend asks for version-compatible=true first.
        self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:  # whatever the stubs say
            raise SessionError(self._reason())
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.inputs = tuple(self._tensor(name) for name in names if self._is_input(name))
        self.outputs = tuple(self._tensor(name) for name in names if not self._is_input(name))
        self.profiles: dict[int, Profile] = {
            index: {tensor.name: self._range(tensor, index) for tensor in self.inputs}
            for index in range(self._engine.num_optimization_profiles)
        }
        self._contexts: dict[int, trt.IExecutionContext] = {}
        self._memory = {name: _Memory(self._cuda) for name in names}
        self._stream = int(_done(self._cuda, self._cuda.cudaStreamCreate()))
        weakref.finalize(self, self._cuda.cudaStreamDestroy, self._stream)

    def run(self, inputs: Mapping[str, Array], profile: int = 0) -> dict[str, Array]:
        """Run once with an optimization profile that the inputs' shapes fit; arrays by name in, and out.

        Raises:
            SessionError: an input has another dtype than the engine's, or CUDA or TensorRT failed.
        """
        context = self._context(profile)
        arrays = {tensor.name: np.asarray(inputs[tensor.name], order="C") for tensor in self.inputs}
        for tensor in self.inputs:
            self._feed(context, tensor, arrays[tensor.name])
        with self._refused("the shapes are not known"):
            unknown = context.infer_shapes()
        self._require(not unknown, f"the shapes of {', '.join(unknown)} are not known")
        allocators = [self._place(context, tensor) for tensor in self.outputs]
        self._require(context.execute_async_v3(self._stream), "the engine was not run")
        self._wait()
        results = {}
        for tensor, allocator in zip(self.outputs, allocators, strict=True):
            shape = _shape(context.get_tensor_shape(tensor.name)) if allocator is None else allocator.shape
            results[tensor.name] = np.empty(shape, _dtype(tensor))
            self._copy(results[tensor.name], tensor.name, to_device=False)
        self._wait()
        return results

    def _feed(self, context: trt.IExecutionContext, tensor: Tensor, array: Array) -> None:
        """Copy an input to the device, and say where it lies."""
        if array.dtype != _dtype(tensor):  # bytes would be read that are not there
            raise SessionError(f"input {tensor.name} is {array.dtype}; the engine takes {_dtype(tensor)}")
        self._require(context.set_input_shape(tensor.name, array.shape), f"{tensor.name} cannot be {array.shape}")
        address = self._memory[tensor.name].reserve(array.nbytes)
        self._require(context.set_tensor_address(tensor.name, address), f"{tensor.name} has no address")
        self._copy(array, tensor.name, to_device=True)

    def _place(self, context: trt.IExecutionContext, tensor: Tensor) -> Any:
        """Say where an output goes; returns the allocator of one whose shape is known only after the run, else None."""
        memory, shape = self._memory[tensor.name], _shape(context.get_tensor_shape(tensor.name))
        if -1 in shape:
            allocator = _allocator(self._library, memory)
            self._require(context.set_output_allocator(tensor.name, allocator), f"{tensor.name} has no allocator")
            return allocator
        address = memory.reserve(math.prod(shape) * _dtype(tensor).itemsize)
        self._require(context.set_tensor_address(tensor.name, address), f"{tensor.name} has no address")
        return None

    def _copy(self, array: Array, name: str, *, to_device: bool) -> None:
        """Between an array and an input's or output's memory; everything is on one stream, so in order."""
        cuda, host, device = self._cuda, array.ctypes.data, self._memory[name].address
        kinds = cuda.cudaMemcpyKind
        if to_device:
            result = cuda.cudaMemcpyAsync(device, host, array.nbytes, kinds.cudaMemcpyHostToDevice, self._stream)
        else:
            result = cuda.cudaMemcpyAsync(host, device, array.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream)
        _done(cuda, result)

    def _wait(self) -> None:
        _done(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))

    def _context(self, profile: int) -> trt.IExecutionContext:
        """The execution context of a profile, made at its first use."""
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:  # whatever the stubs say
                raise SessionError(f"unable to create TensorRT context: {self._reason()}")
            if len(self.profiles) > 1:
                with self._refused(f"profile {profile} cannot be used"):
                    context.set_optimization_profile_async(profile, self._stream)
                self._wait()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name).name == "INPUT")

    def _tensor(self, name: str) -> Tensor:
        engine = self._engine
        return Tensor(
            name=name,
            kind=engine.get_tensor_dtype(name).name,
            shape=_shape(engine.get_tensor_shape(name)),
            is_shape=engine.is_shape_inference_io(name),
            is_linear=engine.get_tensor_format(name).name == "LINEAR",
        )

    def _range(self, tensor: Tensor, profile: int) -> OptimizationProfile:
        if -1 not in tensor.shape:
            return OptimizationProfile(tensor.shape, tensor.shape, tensor.shape)
        low, best, high = (_shape(dims) for dims in self._engine.get_tensor_profile_shape(tensor.name, profile))
        return OptimizationProfile(low, best, high)

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise SessionError(f"{what}: {self._reason()}")

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """For calls whose bindings raise RuntimeError where others answer False."""
        try:
            yield
        except RuntimeError as error:
            raise SessionError(f"{what}: {error}: {self._reason()}") from error

    def _reason(self) -> str:
        return "\n".join(self._log.errors[-_TOLD_ERRORS:]) or "TensorRT gave no reason"


class _Memory:
    """Memory of the device that grows to what is asked of it, and is freed with this object."""

    def __init__(self, cuda: ModuleType) -> None:
        self.address = 0
        self._cuda, self._size = cuda, 0
        self._free: Callable[[], Any] = lambda: None

    def reserve(self, size: int) -> int:
        """The address of at least ``size`` bytes, whose content is lost when it moves."""
        size = max(size, 1)  # an empty tensor has an address too
        if size > self._size:
            self._free()
            self._size = 0
            self.address = int(_done(self._cuda, self._cuda.cudaMalloc(size)))
            self._size = size
            self._free = weakref.finalize(self, self._cuda.cudaFree, self.address)
        return self.address


def library(names: Iterable[str]) -> ModuleType:
    """The first of a flavour's Python modules that is there: its bindings, under whatever name they are installed.

    Raises:
        UnavailableError: none is, or it cannot load its libraries.
    """
    reasons = []
    for module in names:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:  # it loads its libraries with ctypes, which raises OSError
            reasons.append(f"import {module}: {error}")
    raise UnavailableError("\n".join(reasons))


def _use(device: int) -> ModuleType:
    """Make a GPU that of this thread, and return the CUDA runtime's module."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise UnavailableError(f"import cuda.bindings.runtime: {error}") from error
    _done(cuda, cuda.cudaSetDevice(device))
    return cuda


def _done(cuda: ModuleType, result: tuple[Any, ...]) -> Any:
    """What a call of the CUDA runtime gave besides its status."""
    status, *values = result
    if int(status) != 0:
        kind = UnavailableError if int(status) in _NO_DEVICE else SessionError
        raise kind(f"CUDA error {int(status)}: {cuda.cudaGetErrorString(status)[1].decode()}")
    return values[0] if values else None


def _log(library: ModuleType) -> Any:
    """A logger that keeps the library's errors, in ``errors``."""
    base: Any = library.ILogger

    class Log(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(msg)

    return Log()


def _allocator(library: ModuleType, memory: _Memory) -> Any:
    """Gives an output the memory it turns out to need; its ``shape`` is known after the run."""
    base: Any = library.IOutputAllocator

    class Allocator(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.shape: Shape = ()

        def reallocate_output(self, tensor_name: str, memory_now: int, size: int, alignment: int) -> int:
            return memory.reserve(size)

        def reallocate_output_async(
            self, tensor_name: str, memory_now: int, size: int, alignment: int, stream: int
        ) -> int:
            return memory.reserve(size)

        def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:
            self.shape = _shape(shape)

    return Allocator()


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    """What numpy calls the type of a tensor that lies on the device as an array does."""
    strange = {
        f"of type {tensor.kind}": tensor.kind not in NUMPY,
        "a shape tensor": tensor.is_shape,
        "not in row-major order": not tensor.is_linear,
    }
    if reasons := [what for what, true in strange.items() if true]:
        raise SessionError(f"{tensor.name} is {' and '.join(reasons)}; only plain arrays of numpy's types can be run")
    return np.dtype(NUMPY[tensor.kind])


def _shape(dims: trt.Dims) -> Shape:
    return tuple(dims[index] for index in range(len(dims)))
