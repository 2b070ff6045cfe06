"""The inputs and outputs of an engine, held against what the YAML says of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.base import ports
from pipeline.base.ports import written
from pipeline.base.values import TensorSpec
from pipeline.formats.tensorrt.engine_session import OptimizationProfile
from pipeline.formats.tensorrt.spec import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Port(ports.Port):
    """One input or output, as the library tells it.

    Attributes:
        profiles: of an input of a finished engine, one range per profile; else empty.
    """

    profiles: tuple[OptimizationProfile, ...] = ()


def problems(inputs: Sequence[Port], outputs: Sequence[Port], spec: EngineSpec) -> list[str]:
    """What in these inputs and outputs is not what the spec says; nothing when all is.

    Of an output, the library may know less than the spec does. The profiles are compared where the ports have any.
    """
    found = [*_side("input", inputs, spec.signature.inputs, exact=True)]
    found += _side("output", outputs, spec.signature.outputs)
    for port in inputs:
        wanted = tuple(profile[port.name] for profile in spec.profiles if port.name in profile)
        if port.profiles and wanted != port.profiles:
            found.append(f"input {port.name}: expected profiles {_told(wanted)}; found {_told(port.profiles)}")
    return found


def _side(kind: str, found: Sequence[Port], specs: Sequence[TensorSpec], *, exact: bool = False) -> Iterator[str]:
    if not ports.same_names((port.name for port in found), specs):
        expected = ", ".join(sorted(spec.name for spec in specs))
        yield f"expected the {kind}s {expected}; found {', '.join(sorted(port.name for port in found)) or 'none'}"
        return
    for item in ports.differences(found, specs, exact=exact):
        what = "shape " if item.kind == "shape" else ""
        yield f"{kind} {item.name}: expected {what}{item.expected}; found {item.found}"


def _told(profiles: Sequence[OptimizationProfile]) -> str:
    return "; ".join(f"{written(item.min)} {written(item.opt)} {written(item.max)}" for item in profiles) or "none"
