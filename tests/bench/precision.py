"""Reduced precision on the CPU: size, accuracy and speed against fp32 in ONNX Runtime, and what calibration takes.

Every figure comes from a process of its own, because sessions that spin side by side in one distort each other about
twofold. Candidates take turns, and the fastest run of three rounds counts. OpenVINO is a yardstick where it is
installed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.base.values import Array
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.precision import half
from tests.bench import calibration, models
from tests.bench.models import Model
from tests.bench.timing import table

THREADS = 2
ROUNDS = 3
_BATCH = 8
_MEASURED_S, _LEAST_RUNS = 1.0, 5  # of one batch size in one process


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A graph in a runtime: ``onnxruntime``, ``openvino``, or ``float Q/DQ``, ONNX Runtime that only rounds to int8."""

    label: str
    runtime: Literal["onnxruntime", "float Q/DQ", "openvino"]
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One round of a candidate: least seconds of batch 1 and of batch 8, and top-1 accuracy."""

    alone_s: float
    batch_s: float
    accuracy: float | None


def measure(folder: Path) -> str:
    """A table of speed for each model, and one of calibration."""
    digits = models.digits(folder / "digits")
    resnet50 = models.untrained("resnet50", folder, calibrate_on=32)
    tables = [_speed(model, folder) for model in (digits, resnet50)]
    return "\n\n".join([*tables, calibration.measure((digits, resnet50), folder)])


def _speed(model: Model, folder: Path) -> str:
    candidates = _candidates(model, folder)
    missing = importlib.util.find_spec("openvino") is None
    rounds: dict[str, list[Figures]] = {
        item.label: [] for item in candidates if not (missing and item.runtime == "openvino")
    }
    for _ in range(ROUNDS):
        for item in candidates:
            if item.label in rounds:
                rounds[item.label].append(calibration.apart(_round, item, model))
    base = _best(rounds[candidates[0].label])
    rows = [
        _row(item, _best(rounds[item.label]), base)
        if item.label in rounds
        else (item.label, "not installed", *[""] * 5)
        for item in candidates
    ]
    return table(
        (model.name, "MiB", "top-1", "batch 1 ms", "latency ratio", "batch 8 images/s", "throughput ratio"), rows
    )


def _candidates(model: Model, folder: Path) -> list[Candidate]:
    def made(name: str) -> Path:
        out = folder / model.name / name
        out.mkdir(parents=True)
        return out

    fp16, u8s8, s8s8 = made("fp16"), made("u8s8"), made("s8s8")
    half.convert(model.path, fp16, precision="fp16")
    calibration.quantize(model, u8s8)
    calibration.quantize(model, s8s8, consumer="tensorrt")
    u8s8_file, s8s8_file = u8s8 / "model.onnx", s8s8 / "model.onnx"
    return [
        Candidate(label="ONNX Runtime, fp32", runtime="onnxruntime", path=model.path),
        Candidate(label="ONNX Runtime, fp16", runtime="onnxruntime", path=fp16 / "model.onnx"),
        Candidate(label="ONNX Runtime, int8 U8S8 (its own)", runtime="onnxruntime", path=u8s8_file),
        Candidate(label="ONNX Runtime, int8 S8S8 (TensorRT's)", runtime="onnxruntime", path=s8s8_file),
        Candidate(label="the same, computed in float between Q and DQ", runtime="float Q/DQ", path=s8s8_file),
        Candidate(label="OpenVINO, fp32", runtime="openvino", path=model.path),
        Candidate(label="OpenVINO, int8 U8S8", runtime="openvino", path=u8s8_file),
        Candidate(label="OpenVINO, int8 S8S8", runtime="openvino", path=s8s8_file),
    ]


def _round(item: Candidate, model: Model) -> Figures:
    """In a process of its own: open the graph, measure it."""
    name = model.signature.inputs[0].name
    run = _opened(item, model)
    images = [sample.inputs[name] for sample in model.calibration.samples[:_BATCH]]
    alone_s, batch_s = _seconds(run, images[0]), _seconds(run, np.concatenate(images))
    if model.held_out is None:
        return Figures(alone_s=alone_s, batch_s=batch_s, accuracy=None)
    right = [int(run(sample.inputs[name]).argmax()) == sample.target for sample in model.held_out.samples]
    return Figures(alone_s=alone_s, batch_s=batch_s, accuracy=sum(right) / len(right))


def _opened(item: Candidate, model: Model) -> Callable[[Array], Array]:
    fed, answered = model.signature.inputs[0].name, model.signature.outputs[0].name
    if item.runtime == "openvino":
        import openvino  # type: ignore[import-not-found]

        hints = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(str(item.path), "CPU", hints)
        return lambda images: compiled({fed: images})[0]
    runtime = OnnxRuntime(item.path, model.signature, THREADS, float_qdq=item.runtime == "float Q/DQ")
    return lambda images: runtime.run({fed: images})[answered]


def _seconds(run: Callable[[Array], Array], images: Array) -> float:
    for _ in range(2):
        run(images)
    times: list[float] = []
    while sum(times) < _MEASURED_S or len(times) < _LEAST_RUNS:
        began = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - began)
    return min(times)


def _best(rounds: Sequence[Figures]) -> Figures:
    return Figures(
        alone_s=min(one.alone_s for one in rounds),
        batch_s=min(one.batch_s for one in rounds),
        accuracy=rounds[0].accuracy,
    )


def _row(item: Candidate, mine: Figures, base: Figures) -> tuple[str, ...]:
    return (
        item.label,
        f"{item.path.stat().st_size / 2**20:.1f}",
        "" if mine.accuracy is None else f"{mine.accuracy:.4f}",
        f"{mine.alone_s * 1e3:.2f}",
        f"{mine.alone_s / base.alone_s:.2f}",
        f"{_BATCH / mine.batch_s:.1f}",
        f"{base.batch_s / mine.batch_s:.2f}",
    )
