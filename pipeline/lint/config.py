"""Lint rules on what a model is and how it is run: platform, backend, parameters, instances."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from pipeline.base import triton_facts
from pipeline.base.triton_facts import BACKENDS
from pipeline.lint.model import (
    AOTI_PLATFORM,
    AOTI_SINCE,
    Finding,
    Model,
    Rule,
    backend_of,
    enum_name,
    error,
    is_ensemble,
    printable,
    warning,
)

# Fields that a release's model_config.proto lacks, though the message read here has them (git history of
# triton-inference-server/common, protobuf/model_config.proto).
_NON_LINEAR_SINCE = "24.08"


def name(model: Model) -> Iterator[Finding]:
    """The name in the configuration is the directory's."""
    given = model.config.name
    if given and given != model.name:
        yield error(
            model.config_path,
            "name-mismatch",
            f"the configuration names the model {printable(given)!r}, its directory {printable(model.name)!r}.",
            f'write name: "{printable(model.name)}", or leave the name out',
        )


def platform(model: Model) -> Iterator[Finding]:
    """Platform and backend are one of the pairs Triton's core knows (ValidateModelConfig)."""
    config = model.config
    backend = backend_of(model)
    if is_ensemble(config):
        return
    partners = {name: tuple(known.files) for name, known in BACKENDS.items() if known.platform}
    known = [value for values in partners.values() for value in values]
    if config.platform == AOTI_PLATFORM and backend in ("", "pytorch"):
        if model.target.release < AOTI_SINCE:
            yield error(
                model.config_path,
                "platform-unsupported",
                f"the platform torch_aoti is served from release {AOTI_SINCE} on, not by {model.target.release}.",
                'serve TorchScript with platform: "pytorch_libtorch", or choose a later target',
            )
    elif backend in partners and config.platform and config.platform not in partners[backend]:
        yield error(
            model.config_path,
            "platform-backend-pair",
            f"the backend {backend} does not go with the platform {printable(config.platform)!r}.",
            f'write platform: "{partners[backend][0]}", or leave the platform out',
        )
    elif not config.backend and config.platform and config.platform not in known:
        near = difflib.get_close_matches(config.platform, known, n=1)
        yield error(
            model.config_path,
            "platform-unknown",
            f"the platform {printable(config.platform)!r} is none that Triton knows, and no backend is given.",
            f'write platform: "{near[0]}"' if near else 'write backend: "…" with the name of the backend',
        )


def backend_given(model: Model) -> Iterator[Finding]:
    """The backend is said, not guessed from file names."""
    config = model.config
    if config.backend or is_ensemble(config) or config.platform:
        return
    found = backend_of(model)
    if found:
        yield warning(
            model.config_path,
            "backend-missing",
            f"no backend is given; Triton guesses {printable(found)!r} from file names.",
            f'write backend: "{printable(found)}"',
        )
    else:
        yield error(
            model.config_path,
            "backend-missing",
            "no backend is given and none can be inferred from the platform or the files.",
            'write backend: "onnxruntime", "pytorch", "python" or whichever serves the model',
        )


def runtime(model: Model) -> Iterator[Finding]:
    """``runtime`` picks a library file of the image, which differs between images."""
    if model.config.runtime:
        yield warning(
            model.config_path,
            "runtime-set",
            f"runtime {printable(model.config.runtime)!r} ties the model to the library files of one "
            "server image; "
            "it often comes from a configuration copied from a running server.",
            "leave runtime out, so that the backend's own is used",
        )


def agents(model: Model) -> Iterator[Finding]:
    """A repository agent must exist in the server."""
    for agent in model.config.model_repository_agents.agents:
        yield warning(
            model.config_path,
            "repository-agent",
            f"the repository agent {printable(agent.name)!r} is a library not every server has; without "
            "it the model "
            "fails to load (the embedded server has none, the container has 'checksum').",
            "remove model_repository_agents unless the server you run ships that agent",
        )


def later_fields(model: Model) -> Iterator[Finding]:
    """Fields younger than the target."""
    tensors = (*model.config.input, *model.config.output)
    if model.target.release < _NON_LINEAR_SINCE and any(item.is_non_linear_format_io for item in tensors):
        yield error(
            model.config_path,
            "field-unknown-to-release",
            f"is_non_linear_format_io exists from release {_NON_LINEAR_SINCE} on, not in {model.target.release}.",
            "remove the field, or choose a later target",
        )


def parameter_names(model: Model) -> Iterator[Finding]:
    """A misspelt parameter is accepted and does nothing."""
    backend = BACKENDS.get(backend_of(model))
    known = (*(backend.parameters if backend else ()), *triton_facts.CORE_PARAMETERS)
    for key in sorted(model.config.parameters):
        if key in known:
            continue
        same = [item for item in known if item.casefold() == key.casefold()]
        near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near:
            yield warning(
                model.config_path,
                "parameter-unknown",
                f"the backend has no parameter {printable(key)!r}; Triton accepts it and nothing happens.",
                f"write {near[0]}",
            )


def parameter_values(model: Model) -> Iterator[Finding]:
    """Values that a backend refuses."""
    backend = BACKENDS.get(backend_of(model))
    if backend is None:
        return
    for key, entry in sorted(model.config.parameters.items()):
        value = entry.string_value
        if key == "execution_mode" and backend.name == "onnxruntime" and value not in ("0", "1"):
            yield error(
                model.config_path,
                "execution-mode",
                f"execution_mode is 0 (sequential) or 1 (parallel), not {printable(value)!r}.",
                'write execution_mode as "0" or "1"',
            )
        elif key in backend.threads and not (value.isascii() and value.isdigit()):
            yield error(
                model.config_path,
                "thread-count",
                f"{key} is a whole number of threads, not {printable(value)!r}.",
                f'write {key} as a number in quotes, for example "4"',
            )


def batch_strategy(model: Model) -> Iterator[Finding]:
    """A custom batching library belongs to the dynamic batcher."""
    if "TRITON_BATCH_STRATEGY_PATH" in model.config.parameters and model.config.HasField("sequence_batching"):
        yield error(
            model.config_path,
            "batch-strategy-with-sequences",
            "TRITON_BATCH_STRATEGY_PATH works with dynamic_batching only, not with sequence_batching.",
            "remove the parameter",
        )


def accelerators(model: Model) -> Iterator[Finding]:
    """Execution accelerators of the onnxruntime backend."""
    if backend_of(model) != "onnxruntime":
        return
    found = model.config.optimization.execution_accelerators
    for kind, known in triton_facts.ACCELERATORS.items():
        for item in getattr(found, kind):
            if item.name not in known:
                yield error(
                    model.config_path,
                    "accelerator-unknown",
                    f"{kind} {printable(item.name)!r} is unknown to the onnxruntime backend, which refuses the model.",
                    f"use {' or '.join(known)}, or remove it",
                )
            elif item.name == "tensorrt":
                yield from _tensorrt_parameters(model, item.parameters)


def _tensorrt_parameters(model: Model, given: Iterable[str]) -> Iterator[Finding]:
    known = ("precision_mode", *triton_facts.TENSORRT_OPTIONS)
    for key in sorted(given):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            yield error(
                model.config_path,
                "accelerator-parameter-unknown",
                f"the tensorrt accelerator has no parameter {printable(key)!r}, and the backend refuses the model.",
                f"write {near[0]}" if near else "remove it",
            )


def graph_level(model: Model) -> Iterator[Finding]:
    """The onnxruntime backend's graph levels do not rise with the number."""
    graph = model.config.optimization.graph
    if backend_of(model) == "onnxruntime" and triton_facts.GRAPH_LEVELS.get(graph.level) == "ORT_DISABLE_ALL":
        yield warning(
            model.config_path,
            "graph-level-off",
            "optimization.graph.level 2 turns ONNX Runtime's optimizations off (0 is all, -1 basic, 1 extended).",
            "leave optimization.graph out for all optimizations",
        )


def instance_groups(model: Model) -> Iterator[Finding]:
    """How many copies run, and where, is said explicitly."""
    if is_ensemble(model.config):
        return
    if not model.config.instance_group:
        yield warning(
            model.config_path,
            "instance-group-missing",
            "without instance_group a model gets one instance per GPU, or on a CPU up to 2, each with its own memory.",
            "write instance_group [ { kind: KIND_CPU count: 1 } ], or KIND_GPU with its count",
        )
    for group in model.config.instance_group:
        kind = enum_name(group, "kind")
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            yield error(
                model.config_path,
                "instance-group-gpus",
                f"an instance group of {kind} lists gpus, which only KIND_GPU may.",
                "remove gpus, or write kind: KIND_GPU",
            )
        if group.count < 1:
            yield warning(
                model.config_path,
                "instance-group-count",
                f"an instance group has count {group.count}; Triton takes 1, or 2 for onnxruntime on a CPU.",
                "write count: 1, or how many you want",
            )
        if any(number < 0 for number in group.gpus):
            yield error(
                model.config_path,
                "instance-group-gpus",
                f"an instance group lists gpus {list(group.gpus)}; GPUs are numbered from 0.",
                "list existing GPUs",
            )


def tensorrt_instances(model: Model) -> Iterator[Finding]:
    """Engines run on GPUs, and profiles belong to engines."""
    for group in model.config.instance_group:
        kind, backend = enum_name(group, "kind"), backend_of(model)
        if backend in triton_facts.ENGINE_BACKENDS and kind in triton_facts.NOT_FOR_ENGINES:
            yield error(
                model.config_path,
                "tensorrt-needs-gpu",
                f"a TensorRT engine runs on GPUs only; its instance group is {kind}.",
                "write kind: KIND_GPU",
            )
        if backend == "tensorrt":
            for profile in group.profile:
                if not (profile.isascii() and profile.isdigit()):
                    yield error(
                        model.config_path,
                        "instance-group-profile",
                        f"profile {printable(profile)!r} is not the index of an optimization profile.",
                        'write indices in quotes, for example profile: [ "0" ]',
                    )
        elif group.profile:
            yield error(
                model.config_path,
                "instance-group-profile",
                "profile is for TensorRT engines only, and Triton refuses it elsewhere.",
                "remove profile",
            )


CONFIG_RULES: tuple[Rule, ...] = (
    name,
    platform,
    backend_given,
    runtime,
    agents,
    later_fields,
    parameter_names,
    parameter_values,
    batch_strategy,
    accelerators,
    graph_level,
    instance_groups,
    tensorrt_instances,
)
