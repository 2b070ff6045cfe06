"""The cached steps that make a variant: all that decides their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.base.store import Step
from pipeline.base.values import Format, Signature, TensorSpec, Tolerance
from pipeline.config.inheritance import inherited
from pipeline.config.load import LoadedConfig
from pipeline.config.schema.model import TF2ONNX_MAX_OPSET, Data, Source
from pipeline.config.schema.variants import AccuracyGate, Calibration, KeepFp32, Repair, Variant
from pipeline.machine.target import Limits
from pipeline.plan.values import Consumer, Precision, Reduction, Subject

DEFAULT_OPSET = 20  # the newest that every exporter and runtime in use handles; see docs/decisions.md
SAMPLES_CODE = ("base/values.py", "data/samples.py", "formats", "capture")
TENSORFLOW = ("keras", "tensorflow", "tensorflow-cpu")  # the last two are one library; one of them is absent
DATA_CODE = ("base/values.py", "data", "images/preprocessing.py", "config/images.py")


def tensors(signature: Signature) -> dict[str, Any]:
    """The part of a signature that model files depend on: names, dtypes, shapes and layouts."""
    rows: dict[str, tuple[TensorSpec, ...]] = {"inputs": signature.inputs, "outputs": signature.outputs}
    return {
        role: [[spec.name, spec.dtype, list(spec.shape), spec.layout] for spec in specs] for role, specs in rows.items()
    }


def samples_of(signature: Signature) -> dict[str, Any]:
    """The part of a signature that samples depend on: how images become tensors too."""
    return {**tensors(signature), "image": asdict(signature.image) if signature.image else None}


def export(subject: Subject, maker: str) -> Step:
    """The step that makes the fp32 file of the variant ``maker``."""
    making, source = subject.loaded.config.variants[maker], subject.loaded.config.source
    return Step(
        name=f"export[{subject.loaded.config.name}_{maker}]",
        code=SAMPLES_CODE,
        parameters={
            "format": making.format,
            "options": options(making, source, subject.limits),
            "tensors": tensors(subject.signature),
        },
        tools=_export_tools(making, source),
        upstream={"source": subject.source, "samples": subject.samples},
    )


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
    return Step(
        name=f"calibration[{identifier}]",
        code=DATA_CODE,
        parameters={
            "data": data.model_dump(mode="json"),
            "trained": trained,
            "count": reduction.calibration.samples,
            "seed": subject.loaded.train_seed,
            "tensors": samples_of(subject.signature),
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
        code=("precision", "build/gate.py", "proof/parity.py", "proof/comparison.py", *SAMPLES_CODE),
        parameters={
            "precision": reduction.precision,
            "consumer": reduction.consumer,
            "keep_ops": list(reduction.keep_ops),
            "keep_nodes": list(reduction.keep_nodes),
            "calibration": [chosen.method, chosen.percentile] if chosen else None,
            "reduce_range": reduction.reduce_range,
            "repair": reduction.repair.model_dump() if reduction.repair else None,
            "judged": judging if reduction.repair else None,
        },
        tools=("numpy", "onnx", "onnxruntime", *modelopt),
        upstream={
            "export": export,
            "samples": subject.samples,
            **({"calibration": calibration} if calibration else {}),
        },
    )


def judging(
    max_batch_size: int,
    tolerance: Tolerance,
    gate: AccuracyGate | None,
    precision: Precision,
    reduction: Reduction | None,
) -> dict[str, Any]:
    """What decides a verdict on a graph, besides the graph and the samples."""
    return {
        "max_batch_size": max_batch_size,
        "tolerance": asdict(tolerance),
        "accuracy": gate.model_dump() if gate else None,
        "precision": precision,
        "consumer": reduction.consumer if reduction else None,
    }


def parity(identifier: str, graph: Step, samples: Step, parameters: Mapping[str, Any]) -> Step:
    """The step that judges a graph."""
    return Step(
        name=f"parity[{identifier}]",
        code=("build/gate.py", "proof/parity.py", "proof/comparison.py", "precision/simulate.py", *SAMPLES_CODE),
        parameters=parameters,
        tools=("onnxruntime", "torch", "numpy"),
        upstream={"graph": graph, "samples": samples},
    )
