"""The two TensorRTs: what each can do, as dated facts with their sources, and which of them is installed.

Measured in November 2026 on a machine without a GPU with tensorrt-rtx-cu12 1.7.1.116; the bindings of tensorrt
10.16.1.11 and 11.4.0.106 were looked into, not run. NVIDIA's support matrix is that of TensorRT-RTX, read in the same
month at docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal

FlavourName = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the two libraries; neither loads the other's engines.

    Attributes:
        modules: import names, tried in this order.
        distributions: names its bindings are installed under, most usual first.
        libraries: names of the distributions that hold what the bindings load, which have versions of their own.
        install: what to type to get it.
        needs_gpu: an engine can only be built on the GPU it is for.
        capabilities: compute capabilities it builds for; None where only the library itself can tell.
    """

    name: FlavourName
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    libraries: tuple[str, ...]
    install: str
    needs_gpu: bool
    capabilities: tuple[str, ...] | None


_FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "tensorrt": Flavour(
            name="tensorrt",
            modules=("tensorrt",),
            distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings"),
            libraries=("tensorrt-cu13-libs", "tensorrt-cu12-libs"),
            install="pip install tensorrt",
            needs_gpu=True,
            capabilities=None,
        ),
        "tensorrt_rtx": Flavour(
            name="tensorrt_rtx",
            modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
            distributions=("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
            libraries=("tensorrt-rtx-cu12-libs", "tensorrt-rtx-cu13-libs"),
            install="pip install tensorrt-rtx-cu12-libs==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116",
            needs_gpu=False,
            # The members of its ComputeCapability; there is none for the data-centre GPUs of sm_90 and sm_100.
            capabilities=("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
        ),
    }
)

# TensorRT 10.0 builds for Volta (sm_70) and what came after it ("Unsupported SM: 0x601", NVIDIA/TensorRT#3826); from
# 10.5 on not for Volta itself, by its release notes.
_OLDEST = 70
_CAPABILITY = re.compile(r"sm_[0-9]{2,3}")

# What TensorRT-RTX does with a precision on Turing. Adding sm_75 to other capabilities changes the engine for all of
# them: int8 convolutions became Float for sm_80 too.
_TURING = {
    "fp32": "its builder says `FP32 GEMM is not supported`, for Turing (sm_75)",
    "bf16": "its builder says `HW-specific datatypes: b16`, which Turing (sm_75) does not have",
    "int8": "it builds int8 convolutions as Float for Turing (sm_75), and refuses int8 matrix products",
}

# Options that TensorRT-RTX takes and that then fail, or do nothing, where it builds without a GPU.
_RTX_LACKS = {
    "refit": "building ahead of time fails in graph_jit.cpp, which calls CUDA",
    "version_compatible": "it needs the lean runtime libnvinfer_lean.so, which TensorRT-RTX does not come with",
    "hardware_compatibility": "it has no effect; name all compute capabilities under `gpus`",
    "timing_cache": "it times nothing when building, so there is nothing to keep",
}
_DEFAULTS = {"hardware_compatibility": "none"}  # the other options are off when they are None or False


def flavour(name: FlavourName) -> Flavour:
    """What is known of a flavour."""
    return _FLAVOURS[name]


def installed(name: FlavourName) -> str | None:
    """Version of an installed flavour, or None; ``unknown`` where it can be imported but no package says which it is.

    Imports nothing, so it does not tell whether the library loads.
    """
    known = flavour(name)
    if not any(importlib.util.find_spec(module) for module in known.modules):
        return None
    for distribution in known.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def choose(named: FlavourName | None, *, gpu: bool) -> Flavour:
    """The flavour that the YAML names, else what this machine, with or without an NVIDIA GPU, can build with."""
    if named is not None:
        return flavour(named)
    return flavour("tensorrt" if gpu and installed("tensorrt") is not None else "tensorrt_rtx")


def refusals(
    flavour_name: FlavourName, *, precision: str, gpus: Sequence[str], options: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What is known not to work before anything is built: the key at fault, and what is wrong with it.

    Args:
        flavour_name: what is to build.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        gpus: compute capabilities, ``sm_89``; empty for the flavour's own choice.
        options: the engine's other settings by name; one that is None, False or its default is not asked for.
    """
    known = flavour(flavour_name)
    found = list(_wrong_gpus(known, gpus))
    if known.name == "tensorrt_rtx":
        if "sm_75" in gpus and precision in _TURING:
            found.append(("gpus", _unsupported(known, f"{precision} on sm_75", _TURING[precision])))
        asked = [name for name, value in options.items() if value and value != _DEFAULTS.get(name)]
        found += [(name, _unsupported(known, name, _RTX_LACKS[name])) for name in asked if name in _RTX_LACKS]
    return found


def _wrong_gpus(known: Flavour, gpus: Sequence[str]) -> Iterator[tuple[str, str]]:
    for gpu in sorted({gpu for gpu in gpus if gpus.count(gpu) > 1}):
        yield "gpus", f"{gpu} is named {gpus.count(gpu)} times"
    for gpu in gpus:
        if not _CAPABILITY.fullmatch(gpu):
            yield "gpus", f"expected compute capabilities such as sm_89; found {gpu}"
        elif known.capabilities is None and int(gpu.removeprefix("sm_")) < _OLDEST:
            yield "gpus", _unsupported(known, gpu, f"it builds for sm_{_OLDEST} and later")
        elif known.capabilities is not None and gpu not in known.capabilities:
            yield "gpus", _unsupported(known, gpu, f"it builds for {', '.join(known.capabilities)}")


def _unsupported(known: Flavour, what: str, why: str) -> str:
    return f"{what}: unsupported by this flavour ({known.name}): {why}"
