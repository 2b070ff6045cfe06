"""Lint rules on what a model is and how it is run: platform, backend, parameters, instances."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pipeline.base import triton_facts
from pipeline.base.triton_facts import BACKENDS
from pipeline.lint.model import AOTI_PLATFORM, AOTI_SINCE, Findings, Model, Rule, enum_name, printable

# Fields that a release's model_config.proto lacks, though the message read here has them (git history of
# triton-inference-server/common, protobuf/model_config.proto).
_NON_LINEAR_SINCE = "24.08"


def name(model: Model) -> Findings:
    """The name in the configuration is the directory's."""
    given = model.config.name
    if given and given != model.name:
        reason = f"the configuration names the model {printable(given)!r}, its directory {printable(model.name)!r}."
        yield model.error("name-mismatch", reason, f'write name: "{printable(model.name)}", or leave the name out')


def platform(model: Model) -> Findings:
    """Platform and backend are one of the pairs Triton's core knows (ValidateModelConfig)."""
    config, backend = model.config, model.backend
    if model.is_ensemble:
        return
    partners = {name: tuple(known.files) for name, known in BACKENDS.items() if known.platform}
    known = [value for values in partners.values() for value in values]
    if config.platform == AOTI_PLATFORM and backend in ("", "pytorch"):
        if model.target.release < AOTI_SINCE:
            reason = f"the platform torch_aoti is served from release {AOTI_SINCE} on, not by {model.target.release}."
            fix = 'serve TorchScript with platform: "pytorch_libtorch", or choose a later target'
            yield model.error("platform-unsupported", reason, fix)
    elif backend in partners and config.platform and config.platform not in partners[backend]:
        reason = f"the backend {backend} does not go with the platform {printable(config.platform)!r}."
        fix = f'write platform: "{partners[backend][0]}", or leave the platform out'
        yield model.error("platform-backend-pair", reason, fix)
    elif not config.backend and config.platform and config.platform not in known:
        near = difflib.get_close_matches(config.platform, known, n=1)
        reason = f"the platform {printable(config.platform)!r} is none that Triton knows, and no backend is given."
        fix = f'write platform: "{near[0]}"' if near else 'write backend: "…" with the name of the backend'
        yield model.error("platform-unknown", reason, fix)


def backend_given(model: Model) -> Findings:
    """The backend is said, not guessed from file names."""
    if model.config.backend or model.is_ensemble or model.config.platform:
        return
    if found := model.backend:
        reason = f"no backend is given; Triton guesses {printable(found)!r} from file names."
        yield model.warning("backend-missing", reason, f'write backend: "{printable(found)}"')
    else:
        reason = "no backend is given and none can be inferred from the platform or the files."
        fix = 'write backend: "onnxruntime", "pytorch", "python" or whichever serves the model'
        yield model.error("backend-missing", reason, fix)


def runtime(model: Model) -> Findings:
    """``runtime`` picks a library file of the image, which differs between images."""
    if model.config.runtime:
        reason = (
            f"runtime {printable(model.config.runtime)!r} ties the model to the library files of one server image; "
            "it often comes from a configuration copied from a running server."
        )
        yield model.warning("runtime-set", reason, "leave runtime out, so that the backend's own is used")


def agents(model: Model) -> Findings:
    """A repository agent must exist in the server."""
    for agent in model.config.model_repository_agents.agents:
        reason = (
            f"the repository agent {printable(agent.name)!r} is a library not every server has; without it the model "
            "fails to load (the embedded server has none, the container has 'checksum')."
        )
        fix = "remove model_repository_agents unless the server you run ships that agent"
        yield model.warning("repository-agent", reason, fix)


def later_fields(model: Model) -> Findings:
    """Fields younger than the target."""
    tensors = (*model.config.input, *model.config.output)
    if model.target.release < _NON_LINEAR_SINCE and any(item.is_non_linear_format_io for item in tensors):
        reason = f"is_non_linear_format_io exists from release {_NON_LINEAR_SINCE} on, not in {model.target.release}."
        yield model.error("field-unknown-to-release", reason, "remove the field, or choose a later target")


def parameter_names(model: Model) -> Findings:
    """A misspelt parameter is accepted and does nothing."""
    backend = BACKENDS.get(model.backend)
    known = (*(backend.parameters if backend else ()), *triton_facts.CORE_PARAMETERS)
    for key in sorted(model.config.parameters):
        if key in known:
            continue
        same = [item for item in known if item.casefold() == key.casefold()]
        if near := same or difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            reason = f"the backend has no parameter {printable(key)!r}; Triton accepts it and nothing happens."
            yield model.warning("parameter-unknown", reason, f"write {near[0]}")


def parameter_values(model: Model) -> Findings:
    """Values that a backend refuses."""
    backend = BACKENDS.get(model.backend)
    if backend is None:
        return
    for key, entry in sorted(model.config.parameters.items()):
        value = entry.string_value
        if key == "execution_mode" and backend.name == "onnxruntime" and value not in ("0", "1"):
            reason = f"execution_mode is 0 (sequential) or 1 (parallel), not {printable(value)!r}."
            yield model.error("execution-mode", reason, 'write execution_mode as "0" or "1"')
        elif key in backend.threads and not (value.isascii() and value.isdigit()):
            reason = f"{key} is a whole number of threads, not {printable(value)!r}."
            yield model.error("thread-count", reason, f'write {key} as a number in quotes, for example "4"')


def batch_strategy(model: Model) -> Findings:
    """A custom batching library belongs to the dynamic batcher."""
    if "TRITON_BATCH_STRATEGY_PATH" in model.config.parameters and model.config.HasField("sequence_batching"):
        reason = "TRITON_BATCH_STRATEGY_PATH works with dynamic_batching only, not with sequence_batching."
        yield model.error("batch-strategy-with-sequences", reason, "remove the parameter")


def accelerators(model: Model) -> Findings:
    """Execution accelerators of the onnxruntime backend."""
    if model.backend != "onnxruntime":
        return
    found = model.config.optimization.execution_accelerators
    for kind, known in triton_facts.ACCELERATORS.items():
        for item in getattr(found, kind):
            if item.name not in known:
                yield model.error(
                    "accelerator-unknown",
                    f"{kind} {printable(item.name)!r} is unknown to the onnxruntime backend, which refuses the model.",
                    f"use {' or '.join(known)}, or remove it",
                )
            elif item.name == "tensorrt":
                yield from _tensorrt_parameters(model, item.parameters)


def _tensorrt_parameters(model: Model, given: Iterable[str]) -> Findings:
    known = ("precision_mode", *triton_facts.TENSORRT_OPTIONS)
    for key in sorted(given):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            reason = f"the tensorrt accelerator has no parameter {printable(key)!r}, and the backend refuses the model."
            yield model.error("accelerator-parameter-unknown", reason, f"write {near[0]}" if near else "remove it")


def graph_level(model: Model) -> Findings:
    """The onnxruntime backend's graph levels do not rise with the number."""
    graph = model.config.optimization.graph
    if model.backend == "onnxruntime" and triton_facts.GRAPH_LEVELS.get(graph.level) == "ORT_DISABLE_ALL":
        reason = "optimization.graph.level 2 turns ONNX Runtime's optimizations off (0 is all, -1 basic, 1 extended)."
        yield model.warning("graph-level-off", reason, "leave optimization.graph out for all optimizations")


def instance_groups(model: Model) -> Findings:
    """How many copies run, and where, is said explicitly."""
    if model.is_ensemble:
        return
    if not model.config.instance_group:
        yield model.warning(
            "instance-group-missing",
            "without instance_group a model gets one instance per GPU, or on a CPU up to 2, each with its own memory.",
            "write instance_group [ { kind: KIND_CPU count: 1 } ], or KIND_GPU with its count",
        )
    for group in model.config.instance_group:
        kind = enum_name(group, "kind")
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            reason = f"an instance group of {kind} lists gpus, which only KIND_GPU may."
            yield model.error("instance-group-gpus", reason, "remove gpus, or write kind: KIND_GPU")
        if group.count < 1:
            reason = f"an instance group has count {group.count}; Triton takes 1, or 2 for onnxruntime on a CPU."
            yield model.warning("instance-group-count", reason, "write count: 1, or how many you want")
        if any(number < 0 for number in group.gpus):
            reason = f"an instance group lists gpus {list(group.gpus)}; GPUs are numbered from 0."
            yield model.error("instance-group-gpus", reason, "list existing GPUs")


def tensorrt_instances(model: Model) -> Findings:
    """Engines run on GPUs, and profiles belong to engines."""
    for group in model.config.instance_group:
        kind, backend = enum_name(group, "kind"), model.backend
        if backend in triton_facts.ENGINE_BACKENDS and kind in triton_facts.NOT_FOR_ENGINES:
            reason = f"a TensorRT engine runs on GPUs only; its instance group is {kind}."
            yield model.error("tensorrt-needs-gpu", reason, "write kind: KIND_GPU")
        if backend != "tensorrt" and group.profile:
            reason = "profile is for TensorRT engines only, and Triton refuses it elsewhere."
            yield model.error("instance-group-profile", reason, "remove profile")
            continue
        for profile in group.profile:
            if not (profile.isascii() and profile.isdigit()):
                reason = f"profile {printable(profile)!r} is not the index of an optimization profile."
                fix = 'write indices in quotes, for example profile: [ "0" ]'
                yield model.error("instance-group-profile", reason, fix)


CONFIG_RULES: tuple[Rule, ...] = (
    name, platform, backend_given, runtime, agents, later_fields, parameter_names, parameter_values, batch_strategy,
    accelerators, graph_level, instance_groups, tensorrt_instances,
)  # fmt: skip
