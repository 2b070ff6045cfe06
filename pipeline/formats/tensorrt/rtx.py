"""What only TensorRT-RTX has: engines for named compute capabilities, built without any GPU."""

from __future__ import annotations

from pathlib import Path

import tensorrt as trt

from pipeline.formats.tensorrt.common import Log
from pipeline.formats.tensorrt.failures import FailureError
from pipeline.formats.tensorrt.spec import EngineSpec


def prepare(spec: EngineSpec) -> None:
    """No GPU to take: this flavour builds without any."""


def configure(config: trt.IBuilderConfig, spec: EngineSpec, timing_cache: Path | None, device: None) -> tuple[str, ...]:
    """Set the compute capabilities, which are returned; without any the engine is portable. This flavour times nothing.

    Raises:
        FailureError: the library knows no such capability.
    """
    config.num_compute_capabilities = len(spec.gpus)
    for index, gpu in enumerate(spec.gpus):
        capability = getattr(trt.ComputeCapability, gpu.replace("_", "").upper(), None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise FailureError("unsupported", gpu)
    return spec.gpus


def finish(config: trt.IBuilderConfig, log: Log, plan: Path, timing_cache: Path | None, device: None) -> None:
    """Nothing to keep, and the layer table is always in the log."""
