"""The cached steps that make a variant: all that decides their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.base import signatures
from pipeline.base.step import Step
from pipeline.base.values import Format, Kind, Signature
from pipeline.config.inheritance import inherited, owner
from pipeline.config.load import LoadedConfig
from pipeline.machine.target import Limits
from pipeline.plan.values import Consumer, Precision, Reduction, Subject
from pipeline.proof import parity
from pipeline.schema.base import Section
from pipeline.schema.model import TF2ONNX_MAX_OPSET, Data, Source
from pipeline.schema.variants import Calibration, KeepFp32, Repair, Variant
from pipeline.sources import planned

DEFAULT_OPSET = 20  # the newest that every exporter and runtime in use handles; see docs/decisions.md
TENSORFLOW = ("keras", "tensorflow", "tensorflow-cpu")  # the last two are one library; one of them is absent
_JUDGING = {
    "torchscript": "pipeline.formats.torchscript.judging:judge",
    "saved_model": "pipeline.formats.saved_model.judging:judge",
}
"""Graphs of ONNX aside."""


def source(loaded: LoadedConfig, signature: Signature, digests: Mapping[str, str], tools: tuple[str, ...]) -> Step:
    """The step that makes the model."""
    section = loaded.config.source
    return Step(
        name=f"source[{loaded.config.name}]",
        function=planned.function(section),
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
    making, source = subject.loaded.config.variants[maker], subject.loaded.config.source
    return Step(
        name=f"export[{subject.loaded.config.name}_{maker}]",
        function=_export_function(making, source),
        arguments={
            "source": _section(source),
            "options": options(making, source, subject.limits),
            "signature": signatures.to_json(signatures.tensors(subject.signature)),
        },
        unkeyed=_folder(subject.loaded),
        tools=_export_tools(making, source),
        upstream={"source": subject.source, "samples": subject.samples},
    )


def _export_function(making: Variant, source: Source) -> str:
    if source.is_tensorflow:
        return f"pipeline.sources.exports.tensorflow:{'saved_model' if making.format == 'saved_model' else 'onnx'}"
    return f"pipeline.sources.exports.{'torchscript' if making.format == 'torchscript' else 'onnx'}:make"


def _export_tools(making: Variant, source: Source) -> tuple[str, ...]:
    if source.is_tensorflow:
        return TENSORFLOW if making.format == "saved_model" else (*TENSORFLOW, "tf2onnx", "onnx", "onnxslim")
    if making.format == "torchscript":
        return ("torch",)
    return ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")


def options(making: Variant, source: Source, target: Limits) -> dict[str, Any]:
    """How a file is exported, every option named."""
    if making.format == "saved_model":
        return {}
    if making.format == "torchscript":
        return {"method": making.method or "auto"}
    if source.is_tensorflow:
        return {
            "exporter": "tf2onnx",
            "opset": making.opset or min(TF2ONNX_MAX_OPSET, target.max_opset),
            "simplify": making.simplify is not False,
            "max_ir_version": target.max_ir_version,
        }
    return {
        "exporter": making.exporter or "auto",
        "opset": making.opset or min(DEFAULT_OPSET, target.max_opset),
        "simplify": making.simplify is not False,
        "max_ir_version": target.max_ir_version,
        "max_opset": target.max_opset,
    }


def reduction(subject: Subject, key: str, precision: Precision, model_format: Format) -> Reduction | None:
    """How a variant's graph is made less precise; None for fp32."""
    if precision == "fp32":
        return None
    variants = subject.loaded.config.variants
    keep = inherited(variants, key, "keep_fp32") or KeepFp32()
    repair = inherited(variants, key, "repair")
    consumer: Consumer = "tensorrt" if model_format == "tensorrt" else "onnxruntime"
    int8 = precision == "int8"
    return Reduction(
        precision=precision,
        consumer=consumer,
        keep_ops=keep.ops,
        keep_nodes=keep.nodes,
        calibration=(inherited(variants, key, "calibration") or Calibration.model_construct()) if int8 else None,
        reduce_range=int8 and consumer == "onnxruntime" and subject.environment.cpu.saturates_int8,
        repair=None if repair == "off" else repair or Repair(),
    )


def calibration_data(loaded: LoadedConfig, key: str) -> tuple[Data, bool] | None:
    """Where an int8 variant's calibration samples come from, and whether the model was trained on that data.

    None for a variant that needs none.
    """
    config = loaded.config
    if inherited(config.variants, key, "precision") != "int8":
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
    chosen = reduction.calibration
    modelopt = ("nvidia-modelopt",) if chosen is not None and reduction.consumer == "tensorrt" else ()
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
        tools=("numpy", "onnx", "onnx-ir", "onnxruntime", *modelopt),
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
    identifier: str, kind: Kind, reduction: Reduction | None, graph: Step, samples: Step, judging: Mapping[str, Any]
) -> Step:
    """The step that judges a graph."""
    onnx = "pipeline.precision.judging:judge" if reduction else "pipeline.formats.onnx.judging:judge"
    return Step(
        name=f"parity[{identifier}]",
        function=_JUDGING.get(kind, onnx),
        arguments=judging,
        tools=("onnxruntime", "torch", "numpy"),
        upstream={"graph": graph, "samples": samples},
    )
