"""The inputs and outputs of an engine, held against what the YAML says of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.base.values import TensorSpec
from pipeline.formats.tensorrt.spec import EngineSpec, OptimizationProfile, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output, as the library tells it.

    Attributes:
        dtype: numpy's name where numpy has one.
        shape: -1 for a dynamic dimension.
        profiles: of an input of a finished engine, one range per profile; else empty.
    """

    name: str
    dtype: str
    shape: Shape
    profiles: tuple[OptimizationProfile, ...] = ()


def problems(inputs: Sequence[Port], outputs: Sequence[Port], spec: EngineSpec) -> list[str]:
    """What in these inputs and outputs is not what the spec says; nothing when all is.

    The profiles are compared where the ports have any.
    """
    found = [*_side("input", inputs, spec.signature.inputs), *_side("output", outputs, spec.signature.outputs)]
    for port in inputs:
        wanted = tuple(profile[port.name] for profile in spec.profiles if port.name in profile)
        if port.profiles and wanted != port.profiles:
            found.append(f"input {port.name}: expected profiles {_told(wanted)}; found {_told(port.profiles)}")
    return found


def _side(kind: str, ports: Sequence[Port], specs: Sequence[TensorSpec]) -> Iterator[str]:
    by_name = {port.name: port for port in ports}
    if sorted(by_name) != sorted(spec.name for spec in specs):
        expected = ", ".join(sorted(spec.name for spec in specs))
        yield f"expected the {kind}s {expected}; found {', '.join(sorted(by_name)) or 'none'}"
        return
    for spec in specs:
        port = by_name[spec.name]
        if port.dtype != spec.dtype:
            yield f"{kind} {spec.name}: expected {spec.dtype}; found {port.dtype}"
        if not _fits(port.shape, spec, exact=kind == "input"):
            yield f"{kind} {spec.name}: expected shape {_dims(spec.shape)}; found {_dims(port.shape)}"


def _fits(shape: Shape, spec: TensorSpec, *, exact: bool) -> bool:
    """Whether a shape is the spec's; of an output, the library may know less than the spec does."""
    if len(shape) != len(spec.shape):
        return False
    return all(
        found == -1 if isinstance(wanted, str) else found == wanted or (found == -1 and not exact)
        for found, wanted in zip(shape, spec.shape, strict=True)
    )


def _dims(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _told(profiles: Sequence[OptimizationProfile]) -> str:
    return "; ".join(f"{_dims(item.min)} {_dims(item.opt)} {_dims(item.max)}" for item in profiles) or "none"
