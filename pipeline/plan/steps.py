"""The cached steps that make a variant: all that decides their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.base import signatures
from pipeline.base.step import Step
from pipeline.base.values import Signature
from pipeline.config.inheritance import inherited, owner
from pipeline.config.load import LoadedConfig
from pipeline.formats.format import Export
from pipeline.formats.table import FORMATS
from pipeline.plan.subject import Subject
from pipeline.precision.table import PRECISIONS
from pipeline.proof import parity
from pipeline.schema.base import Section
from pipeline.schema.model import Data
from pipeline.schema.variants import Calibration, KeepFp32, Precision, Repair
from pipeline.servers.planned import Reduction
from pipeline.sources import table as sources


def source(loaded: LoadedConfig, signature: Signature, digests: Mapping[str, str], tools: tuple[str, ...]) -> Step:
    """The step that makes the model."""
    section = loaded.config.source
    return Step(
        name=f"source[{loaded.config.name}]",
        function=f"{sources.of(section).module}:make",
        arguments={"source": _section(section), "signature": signatures.to_json(signatures.unlabelled(signature))},
        unkeyed=_folder(loaded),
        inputs=digests,
        tools=tools,
        cores=None,
    )


def samples(loaded: LoadedConfig, signature: Signature, digests: Mapping[str, str], source: Step) -> Step:
    """The step that makes the golden samples; class folders are matched to the labels, the source's too."""
    data, outputs = loaded.train_data, loaded.config.outputs
    places = {name: loaded.where("outputs", name, "labels") for name in outputs}
    return Step(
        name=f"samples[{loaded.config.name}]",
        function="pipeline.sources.golden:make",
        arguments={
            "samples": _section(loaded.config.samples),
            "train_data": _section(data) if data else None,
            "source": _section(loaded.config.source),
            "seed": loaded.train_seed,
            "signature": signatures.to_json(signature),
            "source_labels": [name for name, output in outputs.items() if output.labels == "source"],
        },
        unkeyed={**_folder(loaded), "label_places": places},
        inputs=digests,
        tools=("numpy", "pillow", "scikit-learn", "scipy", "torch"),
        upstream={"source": source},
        cores=None,
    )


def _section(section: Section) -> Mapping[str, Any]:
    found: dict[str, Any] = section.model_dump(mode="json", by_alias=True)
    return found


def _folder(loaded: LoadedConfig) -> Mapping[str, str]:
    """What the YAML's paths are relative to."""
    return {"folder": str(loaded.path.parent)}


def export(subject: Subject, maker: str) -> Step:
    """The step that makes the fp32 file of the variant ``maker``."""
    making, source = _export(subject, maker), subject.loaded.config.source
    return Step(
        name=f"export[{subject.loaded.config.name}_{maker}]",
        function=making.function,
        arguments={
            "source": _section(source),
            "options": options(subject, maker),
            "signature": signatures.to_json(signatures.tensors(subject.signature)),
        },
        unkeyed=_folder(subject.loaded),
        tools=making.tools,
        upstream={"source": subject.source, "samples": subject.samples},
    )


def _export(subject: Subject, maker: str) -> Export:
    config = subject.loaded.config
    making = config.variants[maker].format
    assert making is not None  # config/checks.py: and the source can be made into it
    return FORMATS[making].exports[sources.of(config.source).kind]


def options(subject: Subject, maker: str) -> dict[str, Any]:
    """How the variant ``maker`` is exported, every option named."""
    return _export(subject, maker).options(subject.loaded.config.variants[maker], subject.limits)


def reduction(subject: Subject, key: str, precision: Precision, consumer: str) -> Reduction | None:
    """How a variant's graph is made less precise; None for fp32."""
    row = PRECISIONS[precision]
    if not row.module:
        return None
    variants = subject.loaded.config.variants
    keep = inherited(variants, key, "keep_fp32") or KeepFp32()
    repair = inherited(variants, key, "repair")
    calibration = inherited(variants, key, "calibration") or Calibration.model_construct()
    return Reduction(
        precision=precision,
        consumer=consumer,
        keep_ops=keep.ops,
        keep_nodes=keep.nodes,
        calibration=calibration if row.quantised else None,
        reduce_range=row.quantised and consumer == "onnxruntime" and subject.environment.cpu.saturates_int8,
        repair=None if repair == "off" else repair or Repair(),
    )


def calibration_data(loaded: LoadedConfig, key: str) -> tuple[Data, bool] | None:
    """Where an int8 variant's calibration samples come from, and whether the model was trained on that data.

    None for a variant that needs none.
    """
    config = loaded.config
    if not PRECISIONS[inherited(config.variants, key, "precision") or "fp32"].quantised:
        return None
    calibration = inherited(config.variants, key, "calibration")
    if calibration is not None and calibration.from_ is not None:
        return calibration.from_, False
    if loaded.train_data is not None:
        return loaded.train_data, True
    assert isinstance(config.samples.from_, Data)  # config/checks.py: `data.test` needs a source that trains
    return config.samples.from_, False


def calibration(subject: Subject, key: str, identifier: str, reduction: Reduction | None) -> Step | None:
    """The step that chooses calibration samples; None where nothing is calibrated."""
    if reduction is None or reduction.calibration is None:
        return None
    found = calibration_data(subject.loaded, key)
    assert found is not None
    data, trained = found
    owned = owner(subject.loaded.config.variants, key, "calibration")
    return Step(
        name=f"calibration[{identifier}]",
        function="pipeline.data.samples:calibration",
        arguments={
            "data": _section(data),
            "trained": trained,
            "count": reduction.calibration.samples,
            "seed": subject.loaded.train_seed,
            "signature": signatures.to_json(signatures.unlabelled(subject.signature)),
        },
        unkeyed={
            **_folder(subject.loaded),
            "own": reduction.calibration.from_ is not None,
            "where": subject.loaded.where("variants", owned, "calibration", "from"),
        },
        inputs=subject.calibration_digests[key],
        tools=("numpy", "pillow", "scikit-learn"),
        upstream={"samples": subject.samples},
    )


def reduce(
    subject: Subject,
    identifier: str,
    reduction: Reduction | None,
    export: Step,
    calibration: Step | None,
    judging: Mapping[str, Any],
) -> Step | None:
    """The step that makes the less precise graph, repairs included; None for fp32."""
    if reduction is None:
        return None
    chosen, others = reduction.calibration, PRECISIONS[reduction.precision].tools
    return Step(
        name=f"{reduction.precision}[{identifier}]",
        function="pipeline.precision.reduction:reduce",
        arguments={
            "precision": reduction.precision,
            "consumer": reduction.consumer,
            "keep_ops": list(reduction.keep_ops),
            "keep_nodes": list(reduction.keep_nodes),
            "calibration": {"method": chosen.method, "percentile": chosen.percentile} if chosen else None,
            "reduce_range": reduction.reduce_range,
            "repair": reduction.repair.model_dump() if reduction.repair else None,
            "judged": judging if reduction.repair else None,
        },
        tools=("numpy", "onnx", "onnx-ir", "onnxruntime", *others.get(reduction.consumer, ())),
        upstream={
            "export": export,
            "samples": subject.samples,
            **({"calibration": calibration} if calibration else {}),
        },
    )


def judging(subject: Subject, gates: parity.Gates, reduction: Reduction | None) -> dict[str, Any]:
    """What decides a verdict on a graph, besides the graph and the samples."""
    reduced = {"precision": reduction.precision, "consumer": reduction.consumer} if reduction else {}
    signature = signatures.to_json(signatures.tensors(subject.signature))
    return {"signature": signature, **gates.to_json(), **reduced}


def judge(
    identifier: str, judge: str, reduction: Reduction | None, graph: Step, samples: Step, judging: Mapping[str, Any]
) -> Step:
    """The step that judges a graph."""
    return Step(
        name=f"parity[{identifier}]",
        function="pipeline.precision.judging:judge" if reduction else judge,
        arguments=judging,
        tools=("onnxruntime", "torch", "numpy"),
        upstream={"graph": graph, "samples": samples},
    )
