"""The engine of a variant: its flavour, profiles and capabilities, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline.base.errors import Problem
from pipeline.base.step import Step
from pipeline.config.inheritance import inherited, owner
from pipeline.formats.tensorrt import profiles
from pipeline.formats.tensorrt.spec import EngineSpec, to_json
from pipeline.machine import doctor, tensorrt_flavours
from pipeline.machine.environment import Environment
from pipeline.machine.target import Limits, has_later_tensorrt, tensorrt_conflict, tensorrt_image, tensorrt_requirement
from pipeline.plan.settings import max_batch_size
from pipeline.plan.subject import Subject
from pipeline.schema.variants import Engine, Precision
from pipeline.servers.planned import EnginePlan


def _flavour(subject: Subject, key: str) -> tuple[Engine, tensorrt_flavours.Flavour]:
    settings = inherited(subject.loaded.config.variants, key, "engine") or Engine()
    flavour = tensorrt_flavours.choose(settings.flavour, gpu=subject.environment.gpu is not None)
    if flavour.name == "tensorrt":
        flavour = replace(flavour, install=f"pip install '{tensorrt_requirement(subject.limits)}'")
    return settings, flavour


def problems(subject: Subject, key: str) -> Iterator[Problem]:
    """What is wrong with a variant's engine settings, each at its place in the YAML; nothing for other formats."""
    variants = subject.loaded.config.variants
    if inherited(variants, key, "format") != "tensorrt":
        return
    settings, flavour = _flavour(subject, key)
    precision = inherited(variants, key, "precision") or "fp32"
    found = [
        (("profiles", *path), message)
        for path, message in profiles.problems(
            subject.signature, settings.profiles, max_batch_size(subject, variants[key])
        )
    ]
    options = settings.model_dump(include=set(_BUILDER_OPTIONS))
    for name, message in tensorrt_flavours.refusals(
        flavour.name, precision=precision, gpus=settings.gpus, options=options
    ):
        found.append(((name,), message))
    if flavour.name == "tensorrt" and (conflict := _version_conflict(subject.limits, settings)):
        found.append(
            ((), f"{conflict}: {flavour.install}, build it in {tensorrt_image(subject.limits)}, or set triton.target")
        )
    if flavour.name == "tensorrt" and settings.gpus and settings.hardware_compatibility == "ampere_plus":
        found.append((("gpus",), _NOT_FOR_ALL))
    for path, message in found:
        place = ("variants", owner(variants, key, "engine"), "engine", *path)
        where = subject.loaded.where(*place)
        yield Problem(where=where, key=".".join(str(part) for part in place), message=message)


def _version_conflict(limits: Limits, settings: Engine) -> str:
    """Why the target cannot load what the TensorRT installed here builds; empty where it can, or nothing is known."""
    version = tensorrt_flavours.installed("tensorrt")
    if version is None or (settings.version_compatible and has_later_tensorrt(limits, version)):
        return ""
    return tensorrt_conflict(limits, version, is_built="would be")


_NOT_FOR_ALL = (
    "Triton gives an engine of named `gpus` to those alone, and hardware_compatibility: ampere_plus is for all from "
    "sm_80 on: leave one of the two out"
)
_BUILDER_OPTIONS = (
    "workspace_bytes",
    "hardware_compatibility",
    "version_compatible",
    "refit",
    "weight_streaming",
    "optimization_level",
)


def plan(subject: Subject, key: str, precision: Precision, graph: Step, judged: Mapping[str, Any]) -> EnginePlan:
    """The engine of a variant, whose settings have no problems."""
    settings, flavour = _flavour(subject, key)
    limit = max_batch_size(subject, subject.loaded.config.variants[key])
    spec = EngineSpec(
        flavour=flavour.name,
        precision=precision,
        signature=replace(subject.signature, image=None),
        max_batch_size=limit,
        profiles=profiles.resolve(subject.signature, settings.profiles, limit),
        gpus=settings.gpus or _all_capabilities(flavour),
        **settings.model_dump(include=set(_BUILDER_OPTIONS)),
    )
    step = Step(
        name=f"engine[{subject.loaded.config.name}_{key}]",
        function="pipeline.formats.tensorrt.build:make",
        arguments={"spec": to_json(spec), "gpu": _gpu(subject.environment) if flavour.needs_gpu else None},
        unkeyed={"timing_cache": str(subject.timing_cache), "timeout_s": settings.timeout_s},
        tools=(*flavour.distributions, *flavour.libraries),
        upstream={"graph": graph},
    )
    here = subject.environment.gpu.capability if subject.environment.gpu else None
    file_here = next((one.file_name for one in spec.each if here in one.gpus), spec.each[0].file_name)
    obstacle = _obstacle(subject.environment, spec)
    judged = {**judged, "flavour": spec.flavour, "file": file_here}
    return EnginePlan(
        spec=spec,
        step=step,
        lacking=doctor.lacks_to_build_engines(subject.environment, flavour, spec.gpus),
        skip=settings.when_unavailable == "skip",
        obstacle=obstacle,
        parity=None if obstacle else _parity(subject, key, step, judged),
    )


def _obstacle(environment: Environment, spec: EngineSpec) -> str:
    """Why an engine cannot be run on this machine."""
    gpu = environment.gpu
    if gpu and spec.gpus and gpu.capability not in spec.gpus:
        return f"the GPU here is {gpu.capability}, and the engine is for {', '.join(spec.gpus)}"
    return doctor.lacks_to_run_engines(environment)


def _parity(subject: Subject, key: str, engine: Step, judged: Mapping[str, Any]) -> Step:
    """The step that judges an engine on this machine's GPU, by the samples and gates that judged its graph."""
    gpu = subject.environment.gpu
    return Step(
        name=f"parity[{subject.loaded.config.name}_{key}.engine]",
        function="pipeline.formats.tensorrt.runtime:judge",
        arguments={**judged, "gpu": asdict(gpu) if gpu else None},
        tools=("cuda-bindings", "numpy", *engine.tools),
        upstream={"engine": engine, "samples": subject.samples},
    )


def _all_capabilities(flavour: tensorrt_flavours.Flavour) -> tuple[str, ...]:
    """Every capability that this flavour builds for ahead of time, in any precision; none for one that needs the GPU.

    Each must take fp32: whatever the precision, `keep_fp32` and repair may leave products in it.
    """
    return tuple(
        name
        for name in (() if flavour.needs_gpu else flavour.capabilities or ())
        if not tensorrt_flavours.refusals(flavour.name, precision="fp32", gpus=(name,), options={})
    )


def _gpu(environment: Environment) -> Mapping[str, Any] | None:
    """What a GPU's engine depends on; without a word of the driver, which may not tell its name."""
    gpu = environment.gpu
    return {"name": gpu.name, "capability": gpu.capability} if gpu else None
