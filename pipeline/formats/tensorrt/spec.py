"""What decides an engine: the values that go to the child which builds it, and into the engine's identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pipeline.base import signatures
from pipeline.base.values import Signature
from pipeline.formats.tensorrt.engine_session import OptimizationProfile, Profile
from pipeline.machine.tensorrt_flavours import FlavourName
from pipeline.schema.variants import Precision

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything that decides an engine, but the graph and the library's version.

    Attributes:
        precision: of the graph; nothing here changes it, the engine is only held against it.
        signature: the inputs and outputs the engine must have.
        max_batch_size: 0 for a model without a batch dimension.
        profiles: as ``profiles.resolve`` makes them; at least one.
        gpus: compute capabilities (``sm_89``). Classic TensorRT builds an engine for each, on a GPU that has it; see
            ``each``. Without any it is that of the first GPU at hand, and for TensorRT-RTX the engine is portable: by
            NVIDIA's documentation of 1.7 it runs on 8.0, 8.6, 8.9, 12.0 and later.
        workspace_bytes: limit on the scratch memory of a layer; None for the library's own.
        optimization_level: 0 to 5; None for the library's own.
        kept_nodes: names of the graph's nodes that were left in fp32 on purpose, by the YAML, by repair, or because the
            precision cannot hold their values; the products among them must be Float in the engine.
    """

    flavour: FlavourName
    precision: Precision
    signature: Signature
    max_batch_size: int
    profiles: tuple[Profile, ...]
    gpus: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    refit: bool = False
    weight_streaming: bool = False
    optimization_level: int | None = None
    kept_nodes: tuple[str, ...] = ()

    @property
    def each(self) -> tuple[EngineSpec, ...]:
        """The engines to be built: TensorRT-RTX's is for all capabilities, classic TensorRT's for one."""
        if self.flavour == "tensorrt_rtx" or len(self.gpus) < 2:
            return (self,)
        return tuple(replace(self, gpus=(gpu,)) for gpu in self.gpus)

    @property
    def file_name(self) -> str:
        """Name of one engine's file: ``model_sm80_sm89.engine``, ``model_sm80.plan`` or ``model.plan``."""
        stem = "_".join(["model", *(gpu.replace("_", "") for gpu in self.gpus)])
        return f"{stem}.plan" if self.flavour == "tensorrt" else f"{stem}.engine"

    @property
    def options(self) -> dict[str, Any]:
        """The settings that were asked for, by name: those that are not at their default."""
        settings = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in settings.items() if value != _DEFAULTS[name]}


_OPTIONS = (
    "workspace_bytes", "hardware_compatibility", "version_compatible", "refit", "weight_streaming",
    "optimization_level",
)  # fmt: skip
_DEFAULTS = {item.name: item.default for item in fields(EngineSpec)}


def to_json(spec: EngineSpec) -> dict[str, Any]:
    """JSON values that ``from_json`` reads back."""
    profiles = [{name: shapes._asdict() for name, shapes in profile.items()} for profile in spec.profiles]
    return {**asdict(spec), "profiles": profiles}


def from_json(values: Mapping[str, Any]) -> EngineSpec:
    """The spec that ``to_json`` wrote."""
    profiles = tuple(
        {
            name: OptimizationProfile(**{which: tuple(shape) for which, shape in shapes.items()})
            for name, shapes in profile.items()
        }
        for profile in values["profiles"]
    )
    return EngineSpec(
        **{
            **values,
            "signature": signatures.from_json(values["signature"]),
            "profiles": profiles,
            "gpus": tuple(values["gpus"]),
            "kept_nodes": tuple(values["kept_nodes"]),
        }
    )
