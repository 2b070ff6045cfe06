"""What only classic TensorRT (10, 11) has: it builds on the GPU it builds for, and keeps what it timed there.

Written against the bindings of 10.16.1 and 11.4.0; never run where this was written, for want of a GPU.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from pipeline.engine.common import Log, set_flag
from pipeline.engine.failures import FailureError
from pipeline.engine.spec import EngineSpec
from pipeline.files import write_atomic

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The GPU an engine is built on.

    Attributes:
        capability: as in ``gpus``: ``sm_90``.
    """

    name: str
    capability: str


def configure(config: trt.IBuilderConfig, spec: EngineSpec, timing_cache: Path | None) -> tuple[str, ...]:
    """Set what the spec asks of this flavour, and load what was timed before.

    Args:
        config: changed in place.
        spec: what is asked.
        timing_cache: folder of the caches, one per TensorRT version and GPU; None to time everything anew.

    Returns:
        The compute capability built for.

    Raises:
        FailureError: no GPU, not the one asked for, or a setting this version does not have.
    """
    device = current_device()
    if spec.gpus not in ((), (device.capability,)):
        raise FailureError("missing", f"the GPU here is {device.capability} ({device.name}), not {spec.gpus[0]}")
    if spec.version_compatible:
        set_flag(config, "VERSION_COMPATIBLE")
    if spec.refit:
        set_flag(config, "REFIT")
    if spec.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, spec.hardware_compatibility.upper(), None)
        if level is None:
            raise FailureError("unsupported", f"hardware_compatibility {spec.hardware_compatibility}")
        config.hardware_compatibility_level = level
    if timing_cache is not None:
        file = _cache_file(timing_cache, device)
        data = file.read_bytes() if file.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(data), False):  # it is not of this GPU: start anew
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return (device.capability,)


def finish(config: trt.IBuilderConfig, log: Log, plan: Path, timing_cache: Path | None) -> None:
    """Keep what was timed; and where the log had no layer table, ask the engine itself for it."""
    if timing_cache is not None:
        data = config.get_timing_cache().serialize()
        write_atomic(_cache_file(timing_cache, current_device()), bytes(memoryview(data)))
    if not log.table:
        engine = trt.Runtime(log).deserialize_cuda_engine(plan.read_bytes())
        log.table = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)


def current_device() -> Device:
    """The first GPU, by CUDA's driver, which every machine with a GPU has.

    Raises:
        FailureError: no driver, or no GPU.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise FailureError("missing", f"no NVIDIA driver: {error}") from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    status = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    )
    if status:
        raise FailureError("missing", f"no NVIDIA GPU: the driver answers with CUDA error {status}")
    return Device(name=name.value.decode(), capability=f"sm_{major.value}{minor.value}")


def _cache_file(folder: Path, device: Device) -> Path:
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name)
    return folder / f"{trt.__version__}-{gpu}-{device.capability}.cache"
