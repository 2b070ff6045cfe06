"""What only classic TensorRT (10, 11) has: it builds on the GPU it builds for, and keeps what it timed there.

Written against the bindings of 10.3.0, 10.16.1 and 11.4.0; never run where this was written, for want of a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorrt as trt

from pipeline.base.files import write_atomic
from pipeline.formats.tensorrt.common import Log, set_flag
from pipeline.formats.tensorrt.failures import FailureError
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.machine.cuda_driver import Device, DriverError, devices


def chosen(found: Sequence[Device], gpus: Sequence[str]) -> Device:
    """The first device, or the first of the capability asked for; a FailureError where there is none."""
    fitting = [device for device in found if not gpus or device.capability == gpus[0]]
    if not fitting:
        here = ", ".join(f"{device.capability} ({device.name})" for device in found)
        raise FailureError("gpu", f"the GPU here is {here}, not {gpus[0]}")
    return fitting[0]


def prepare(spec: EngineSpec) -> Device:
    """Take the GPU to build on; before the builder is made, which stays on the GPU that it finds.

    Raises:
        FailureError: no GPU, or not the one asked for.
    """
    try:
        device = chosen(devices(), spec.gpus)
        device.take()
    except DriverError as error:
        raise FailureError("gpu", str(error)) from error
    return device


def configure(
    config: trt.IBuilderConfig, spec: EngineSpec, timing_cache: Path | None, device: Device
) -> tuple[str, ...]:
    """Set what the spec asks of this flavour, and load what was timed before; returns the compute capability built for.

    Args:
        config: changed in place.
        spec: what is asked.
        timing_cache: folder of the caches, one per TensorRT version and GPU; None to time everything anew.
        device: what ``prepare`` took.

    Raises:
        FailureError: a setting this version does not have.
    """
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
        cache: Any = config.create_timing_cache(data)  # None when it is damaged, whatever the stubs say
        if cache is None or not config.set_timing_cache(cache, False):  # damaged, or not of this GPU: start anew
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return (device.capability,)


def finish(config: trt.IBuilderConfig, log: Log, plan: Path, timing_cache: Path | None, device: Device) -> None:
    """Keep what was timed; and where the log had no layer table, ask the engine itself for it.

    Raises:
        FailureError: the library does not take the engine that it has just built.
    """
    if timing_cache is not None:
        data = config.get_timing_cache().serialize()
        write_atomic(_cache_file(timing_cache, device), bytes(memoryview(data)))
    if not log.table:
        runtime = trt.Runtime(log)
        if hasattr(runtime, "engine_host_code_allowed"):  # a version-compatible engine brings its own runtime
            runtime.engine_host_code_allowed = True
        engine: Any = runtime.deserialize_cuda_engine(plan.read_bytes())  # None when it fails, whatever the stubs say
        if engine is None:
            raise FailureError("build", *log.last_errors())
        log.table = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)


def _cache_file(folder: Path, device: Device) -> Path:
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name)
    return folder / f"{trt.__version__}-{gpu}-{device.capability}.cache"
