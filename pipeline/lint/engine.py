"""Lint rules on TensorRT engines: the file, what it was built by and for, and the backend that is to load it.

Numbers such as server#4657 are issues of github.com/triton-inference-server/server.
"""

from __future__ import annotations

from typing import Final

from pipeline.base.files import sha256_file
from pipeline.base.triton_facts import ENGINE_BACKENDS
from pipeline.formats.tensorrt import layers, plan_file
from pipeline.lint.engine_shapes import SHAPE_RULES
from pipeline.lint.engine_sidecar import Engine, EngineRule, compute_capability, open_engine
from pipeline.lint.model import RTX_BACKEND, Findings, Model, Rule, below, printable
from pipeline.machine import tensorrt_flavours
from pipeline.machine.target import has_later_tensorrt, tensorrt_conflict, tensorrt_image

_RTX: Final = "tensorrt_rtx"  # the flavour; the backend for it has the same name


def engines(model: Model) -> Findings:
    """All rules on every version's engines."""
    if model.backend not in ENGINE_BACKENDS:
        return
    for number, version in model.versions.items():
        paths = model.files(version)
        for path in paths:
            engine, problem = open_engine(model, number, path, alone=len(paths) == 1)
            if problem is not None:
                yield problem
            for rule in FILE_RULES:
                yield from rule(model, engine)


def header(model: Model, engine: Engine) -> Findings:
    """The file is whole, as far as its header tells."""
    built_as = engine.sidecar.flavour or (_RTX if model.backend == RTX_BACKEND else None)
    if damage := plan_file.problem(engine.path, built_as):
        certain = built_as == _RTX or engine.path.stat().st_size < plan_file.HEADER_BYTES
        report = model.at(engine.path).error if certain else model.at(engine.path).warning
        yield report("engine-truncated", f"{damage}.", "copy the file again, or build it again")


def digest(model: Model, engine: Engine) -> Findings:
    """The file is the one that was built and proven."""
    wanted = engine.sidecar.plan_sha256
    if wanted is not None and sha256_file(engine.path) != wanted:
        reason = f"its SHA-256 is not the {wanted[:12]}… of its sidecar: it was changed or damaged after it was built."
        fix = "copy the engine and its sidecar again, or build it again"
        yield model.at(engine.path).error("engine-sha256", reason, fix)


def flavour(model: Model, engine: Engine) -> Findings:
    """An engine loads in the runtime of its own flavour only."""
    built_as, backend = engine.sidecar.flavour, model.backend
    if built_as == _RTX and backend != RTX_BACKEND:
        reason = "this is a TensorRT-RTX engine, which Triton's tensorrt backend cannot load."
        fix = f'write backend: "{RTX_BACKEND}" and no platform, or build the engine with the flavour tensorrt'
        yield model.at(engine.path).error("engine-flavour", reason, fix)
    elif built_as == "tensorrt" and backend == RTX_BACKEND:
        reason = "this is an engine of classic TensorRT, which TensorRT-RTX cannot load."
        fix = f'write backend: "tensorrt", or build the engine with the flavour {_RTX}'
        yield model.at(engine.path).error("engine-flavour", reason, fix)


def tensorrt_version(model: Model, engine: Engine) -> Findings:
    """The target has the TensorRT that built the engine."""
    version, at, image = engine.sidecar.version, model.at(engine.path), tensorrt_image(model.target)
    if engine.sidecar.flavour != "tensorrt" or version is None:
        return
    if engine.sidecar.options.version_compatible and has_later_tensorrt(model.target, version):
        return
    if conflict := tensorrt_conflict(model.target, version):
        yield at.error("engine-tensorrt-version", f"{conflict}.", f"build it in {image}, the same month")
    elif model.target.tensorrt is None and _built_for(model, engine) != model.target.release:
        reason = (
            f"TensorRT {version} built the engine, and the TensorRT of Triton {model.target.release}'s container is "
            "not known here."
        )
        fix = f"build it in {image}, the same month, or name the release it was built for as the target"
        yield at.warning("engine-tensorrt-unknown", reason, fix)


def precision(model: Model, engine: Engine) -> Findings:
    """The types of the layers are those of the precision, as far as their numbers tell."""
    claimed, found = engine.sidecar.precision, engine.sidecar.layers
    if claimed is None:
        return
    asked, known = layers.TYPE_OF[claimed], [kind for kind in layers.PRECISION_OF if found.get(kind)]
    others = [kind for kind in layers.product_counts(engine.sidecar.layer_types) if kind != asked]
    if (known and asked not in known) or (claimed == "fp32" and others):
        counted = ", ".join(f"{count} {printable(kind)}" for kind, count in sorted(found.items()))
        reason = f"the sidecar says {claimed}, and the engine's layers are {counted}."
        fix = "build the engine again from a graph in that precision"
        yield model.at(engine.sidecar_path).error("engine-precision", reason, fix)


def _built_for(model: Model, engine: Engine) -> object:
    """The release this tool built a version for, by its manifest beside the repository; None where there is none."""
    target = model.manifest(engine.version).get("target")
    return target.get("release") if isinstance(target, dict) else None


def capabilities(model: Model, engine: Engine) -> Findings:
    """``cc_model_filenames`` and the sidecar agree on the GPUs an engine is for."""
    given = {name: compute_capability(name) for name in engine.sidecar.compute_capabilities}
    offered = tensorrt_flavours.flavour(_RTX).capabilities if engine.sidecar.flavour == _RTX else None
    for name, known in given.items():
        if known is None:
            reason = f"the sidecar lists {printable(name)!r}, which is no compute capability."
            fix = 'write it as "8.9" or "sm_89"'
            yield model.at(engine.sidecar_path).warning("engine-capability-name", reason, fix)
        elif offered is not None and f"sm_{known.replace('.', '')}" not in offered:
            reason = f"the sidecar lists {printable(name)!r}, and TensorRT-RTX builds for {', '.join(offered)} only."
            fix = "build the engine again, for GPUs of that list"
            yield model.at(engine.sidecar_path).error("engine-capability-unknown", reason, fix)
    built = {known for known in given.values() if known is not None}
    names = dict(model.config.cc_model_filenames)
    keys = {key for key, name in names.items() if below(engine.path.parent, name) == engine.path}
    for key in sorted(keys - built) if built and None not in given.values() else ():
        reason = (
            f"cc_model_filenames gives it to GPUs of compute capability {printable(key)}; it is built for "
            f"{', '.join(sorted(built))}."
        )
        fix = "name a file there that is built for it"
        yield model.at(engine.path).error("engine-capability-mismatch", reason, fix)
    for missing in sorted(built - names.keys()) if names else ():
        reason = (
            f"it is built for compute capability {missing}, which cc_model_filenames does not list; such a GPU "
            "silently gets default_model_filename (server#4657)."
        )
        fix = f'add cc_model_filenames {{ key: "{missing}" value: "{printable(engine.path.name)}" }}'
        yield model.at(engine.path).warning("engine-capability-unlisted", reason, fix)


def rtx_platform(model: Model) -> Findings:
    """Nothing may look as if a container's backend could load a TensorRT-RTX engine."""
    if model.backend == RTX_BACKEND and model.config.platform == "tensorrt_plan":
        yield model.error(
            "platform-backend-pair",
            f"the backend {RTX_BACKEND} does not go with the platform 'tensorrt_plan', which is classic TensorRT's.",
            "leave the platform out",
        )


FILE_RULES: tuple[EngineRule, ...] = (header, digest, flavour, tensorrt_version, precision, capabilities, *SHAPE_RULES)
ENGINE_RULES: tuple[Rule, ...] = (rtx_platform, engines)
