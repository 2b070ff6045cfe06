"""Config + what the sources depend on -> BuildPlan. Pure: reads no files, runs nothing, imports no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import comparison
from pipeline.artifacts import Format, Signature, TensorSpec, Tolerance
from pipeline.config.load import LoadedConfig
from pipeline.config.schema import AccuracyGate, Data, Gates, Input, Output
from pipeline.config.schema import Variant as VariantConfig
from pipeline.environment import Environment
from pipeline.errors import ConfigError
from pipeline.store import Step
from pipeline.target import Limits, limits

DEFAULT_OPSET = 20  # the newest that every exporter and runtime in use handles; see docs/decisions.md
DEFAULT_MAX_BATCH_SIZE = 32
DIGIT_LABELS = tuple("0123456789")

_DATA_CODE = ("artifacts.py", "datasets.py", "image_data.py", "user_code.py", "torchvision_compat.py")
_SHARED_CODE = ("artifacts.py", "samples.py", "runtimes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One servable form of the model, fully resolved.

    Attributes:
        identifier: ``<name>_<key>``: folder, log, row of the report and Triton model name.
        key: its key under ``variants``.
        parent: key of the variant whose file it serves; its own key when it makes the file.
        options: how the file is made (``method``, or ``exporter``, ``opset`` and ``simplify``).
        max_batch_size: 0 where Triton does not batch.
        fields: ModelConfig fields from the YAML, variant over common.
        export: the step that makes the file.
        parity: the step that judges it.
    """

    identifier: str
    key: str
    format: Format
    precision: Literal["fp32"]
    parent: str
    options: Mapping[str, Any]
    max_batch_size: int
    fields: Mapping[str, Any]
    tolerance: Tolerance
    accuracy_gate: AccuracyGate | None
    export: Step
    parity: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Everything a build will do, decided before it starts.

    Attributes:
        signature: with the labels the YAML knows; ``labels: source`` stays empty until the source is there.
        source: the step that makes the model.
        samples: the step that makes the golden samples.
        missing_to_build: what this machine lacks to make the model, each with its remedy.
        missing_to_serve: what it lacks to serve it.
    """

    loaded: LoadedConfig
    signature: Signature
    limits: Limits
    source: Step
    samples: Step
    variants: tuple[Variant, ...]
    repository: Path
    work_dir: Path
    missing_to_build: tuple[str, ...]
    missing_to_serve: tuple[str, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All cached steps, in order, each once."""
        rows = [self.source, self.samples]
        for variant in self.variants:
            rows += [step for step in (variant.export, variant.parity) if step not in rows]
        return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What the source and the samples read, found by their rooms: file digests and distribution names."""

    source_digests: Mapping[str, str]
    source_tools: tuple[str, ...]
    samples_digests: Mapping[str, str]


def make(
    loaded: LoadedConfig,
    dependencies: Dependencies,
    environment: Environment,
    *,
    repository: Path,
    work_dir: Path,
    keys: tuple[str, ...] = (),
) -> BuildPlan:
    """Resolve every option and name every step.

    Args:
        loaded: the checked configuration.
        dependencies: digests of all files the source and the samples read.
        environment: what this machine has.
        repository: repository root.
        work_dir: where the step store, logs and reports live.
        keys: the variants wanted; empty for all.

    Raises:
        ConfigError: the target release, or one of ``keys``, is unknown.
    """
    config = loaded.config
    if unknown := [key for key in keys if key not in config.variants]:
        raise ConfigError(
            f"no variant is called {', '.join(unknown)}", found=f"the YAML has {', '.join(config.variants)}"
        )
    model_signature = signature(config.inputs, config.outputs, loaded)
    target = limits(config.triton.target)
    source = _source_step(loaded, model_signature, dependencies)
    samples = _samples_step(loaded, model_signature, dependencies, source)
    variants = _variants(loaded, model_signature, target, source, samples)
    return BuildPlan(
        loaded=loaded,
        signature=model_signature,
        limits=target,
        source=source,
        samples=samples,
        variants=tuple(variant for variant in variants if not keys or variant.key in keys),
        repository=repository,
        work_dir=work_dir,
        missing_to_build=environment.lacks_to_build(_libraries(loaded)),
        missing_to_serve=environment.lacks_to_serve(container=config.serve.engine == "container"),
    )


def signature(inputs: Mapping[str, Input], outputs: Mapping[str, Output], loaded: LoadedConfig) -> Signature:
    """The YAML's tensors as values; the batch letter is the one that every shape starts with."""
    ins = tuple(
        TensorSpec(name=name, dtype=spec.dtype, shape=spec.shape, layout=spec.layout) for name, spec in inputs.items()
    )
    outs = tuple(
        TensorSpec(name=name, dtype=spec.dtype, shape=spec.shape, labels=_labels(spec.labels, loaded))
        for name, spec in outputs.items()
    )
    firsts = {spec.shape[0] if spec.shape else None for spec in (*ins, *outs)}
    first = firsts.pop() if len(firsts) == 1 else None
    return Signature(inputs=ins, outputs=outs, batch=first if isinstance(first, str) else None)


def _labels(labels: str | tuple[str, ...] | None, loaded: LoadedConfig) -> tuple[str, ...]:
    if labels is None or labels == "source":
        return ()
    if labels == "digits":
        return DIGIT_LABELS
    if isinstance(labels, str):
        return tuple(loaded.resolve(labels).read_text(encoding="utf-8").splitlines())
    return labels


def with_source_labels(plan: BuildPlan, labels: tuple[str, ...]) -> Signature:
    """The plan's signature with ``labels: source`` filled in by what the source says."""
    wanted = {name for name, spec in plan.loaded.config.outputs.items() if spec.labels == "source"}
    outputs = tuple(replace(spec, labels=labels) if spec.name in wanted else spec for spec in plan.signature.outputs)
    return replace(plan.signature, outputs=outputs)


def _tensors(model_signature: Signature) -> dict[str, Any]:
    """The part of a signature that files depend on: names, dtypes, shapes and layouts, not labels."""
    rows = {"inputs": model_signature.inputs, "outputs": model_signature.outputs}
    return {
        role: [[spec.name, spec.dtype, list(spec.shape), spec.layout] for spec in specs] for role, specs in rows.items()
    }


def _source_step(loaded: LoadedConfig, model_signature: Signature, dependencies: Dependencies) -> Step:
    return Step(
        name=f"source[{loaded.config.name}]",
        code=("source", "runtimes", *_DATA_CODE),
        parameters={
            "source": loaded.config.source.model_dump(mode="json", by_alias=True),
            "tensors": _tensors(model_signature),
        },
        inputs=dependencies.source_digests,
        tools=dependencies.source_tools,
    )


def samples_data(loaded: LoadedConfig) -> Data | None:
    """The data set of the golden samples when it is not the training data's test part."""
    origin = loaded.config.samples.from_
    return origin if isinstance(origin, Data) else None


def train_data(loaded: LoadedConfig) -> Data | None:
    """The training data, where the source trains."""
    train = loaded.config.source.train
    return train.data if train else None


def train_seed(loaded: LoadedConfig) -> int:
    """The seed that fixed the split into training and held-out data."""
    train = loaded.config.source.train
    return train.seed if train else 0


def _samples_step(loaded: LoadedConfig, model_signature: Signature, dependencies: Dependencies, source: Step) -> Step:
    data = train_data(loaded)
    return Step(
        name=f"samples[{loaded.config.name}]",
        code=("samples.py", "runtimes", *_DATA_CODE),
        parameters={
            "samples": loaded.config.samples.model_dump(mode="json", by_alias=True),
            "train_data": data.model_dump(mode="json") if data else None,
            "seed": train_seed(loaded),
            "tensors": _tensors(model_signature),
            "labels": [list(spec.labels) for spec in model_signature.outputs],  # class folders are matched to them
        },
        inputs=dependencies.samples_digests,
        tools=("numpy", "pillow", "scikit-learn", "torch"),
        upstream={"source": source},
    )


def _variants(
    loaded: LoadedConfig, model_signature: Signature, target: Limits, source: Step, samples: Step
) -> tuple[Variant, ...]:
    config = loaded.config
    rows = []
    for key, variant in config.variants.items():
        maker = _maker(config.variants, key)
        making = config.variants[maker]
        assert making.format is not None
        options = _options(making, target)
        export = Step(
            name=f"export[{config.name}_{maker}]",
            code=("export", "optimize", *_SHARED_CODE),
            parameters={"format": making.format, "options": options, "tensors": _tensors(model_signature)},
            tools=_export_tools(making.format),
            upstream={"source": source, "samples": samples},
        )
        max_batch_size = _max_batch_size(loaded, variant, model_signature)
        gates = variant.gates or config.gates
        tolerance = _tolerance(gates, variant.precision)
        rows.append(
            Variant(
                identifier=f"{config.name}_{key}",
                key=key,
                format=making.format,
                precision=variant.precision,
                parent=maker,
                options=options,
                max_batch_size=max_batch_size,
                fields=_fields(loaded, variant),
                tolerance=tolerance,
                accuracy_gate=gates.accuracy,
                export=export,
                parity=_parity_step(f"{config.name}_{key}", export, samples, max_batch_size, tolerance, gates),
            )
        )
    return tuple(rows)


def _maker(variants: Mapping[str, VariantConfig], key: str) -> str:
    """Follow ``from`` to the variant that makes the file; load.py has refused cycles."""
    while (parent := variants[key].from_) is not None:
        key = parent
    return key


def _options(making: VariantConfig, target: Limits) -> dict[str, Any]:
    if making.format == "torchscript":
        return {"method": making.method or "auto"}
    return {
        "exporter": making.exporter or "auto",
        "opset": making.opset or min(DEFAULT_OPSET, target.max_opset),
        "simplify": making.simplify is not False,
        "max_ir_version": target.max_ir_version,
        "max_opset": target.max_opset,
    }


def _export_tools(model_format: Format) -> tuple[str, ...]:
    return ("torch",) if model_format == "torchscript" else ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")


def _max_batch_size(loaded: LoadedConfig, variant: VariantConfig, model_signature: Signature) -> int:
    if model_signature.batch is None:
        return 0
    own = variant.triton.get("max_batch_size")
    if own is not None:
        return int(own)
    common = loaded.config.triton.max_batch_size
    return DEFAULT_MAX_BATCH_SIZE if common is None else common


def _fields(loaded: LoadedConfig, variant: VariantConfig) -> dict[str, Any]:
    common = _overlay(_image_parameters(loaded), loaded.config.triton.model_config_fields)
    own = {key: value for key, value in variant.triton.items() if key != "max_batch_size"}
    return _overlay(common, own)


def _image_parameters(loaded: LoadedConfig) -> dict[str, Any]:
    """How pixels of 0..1 were normalised, so that ``predict`` can prepare an image by asking the server alone."""
    data = train_data(loaded) or samples_data(loaded)
    if data is None or not (data.images or data.dataset):
        return {}
    texts = {"image_mean": data.mean, "image_std": data.std}
    return {"parameters": {name: {"string_value": ",".join(map(str, values))} for name, values in texts.items()}}


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key != "version_policy"
        result[key] = _overlay(result[key], value) if both else value
    return result


def _tolerance(gates: Gates, precision: str) -> Tolerance:
    given = gates.parity.model_dump(exclude_none=True)
    return replace(comparison.default_tolerance(precision), **given)


def _parity_step(
    identifier: str, export: Step, samples: Step, max_batch_size: int, tolerance: Tolerance, gates: Gates
) -> Step:
    return Step(
        name=f"parity[{identifier}]",
        code=("parity.py", "comparison.py", *_SHARED_CODE),
        parameters={
            "max_batch_size": max_batch_size,
            "tolerance": [tolerance.max_abs, tolerance.max_rel, tolerance.min_cosine, tolerance.min_top1],
            "accuracy": gates.accuracy.model_dump() if gates.accuracy else None,
        },
        tools=("onnxruntime", "torch", "numpy"),
        upstream={"export": export, "samples": samples},
    )


def _libraries(loaded: LoadedConfig) -> tuple[str, ...]:
    source = loaded.config.source
    models = [
        source.train.model if source.train else None,
        source.checkpoint.model if source.checkpoint else None,
        source.model,
    ]
    datasets = [train_data(loaded), samples_data(loaded)]
    names = {model.library for model in models if model and model.library}
    if any(data and data.dataset in ("mnist", "cifar10") for data in datasets):
        names.add("torchvision")
    return tuple(sorted(names))
