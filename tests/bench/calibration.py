"""What int8 calibration takes in the pipeline against the bare library call on the same samples: time and memory."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from pipeline.machine import environment
from pipeline.precision import int8
from pipeline.precision.calibration import Method
from tests.bench.models import Model
from tests.bench.timing import table

ROUNDS = 2
PERCENTILE = 99.99
METHODS: Mapping[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}


def measure(models: Sequence[Model], folder: Path) -> str:
    """The graph for ONNX Runtime by two methods: least seconds of two rounds, and the memory a process grew to."""
    header = (
        "int8 for ONNX Runtime",
        "quantize_static s",
        "pipeline s",
        "ratio",
        "quantize_static MiB",
        "pipeline MiB",
    )
    return table(header, [_row(model, method, folder) for model in models for method in METHODS])


def _row(model: Model, method: Method, folder: Path) -> tuple[str, ...]:
    ways = {"bare": _bare, "pipeline": quantize}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in ways.items():
            out = folder / model.name / f"{method}-{name}{number}" / "out"
            out.mkdir(parents=True)
            took[name].append(apart(_cost, way, model, out, method))
    (bare_s, bare_mib), (mine_s, mine_mib) = (tuple(map(min, zip(*took[name], strict=True))) for name in ways)
    return (
        f"{model.name}, {len(model.calibration.samples)} samples, {method}",
        *(f"{bare_s:.1f}", f"{mine_s:.1f}", f"{mine_s / bare_s:.2f}", f"{bare_mib:.0f}", f"{mine_mib:.0f}"),
    )


def _cost(way: Callable[..., None], model: Model, out: Path, method: Method) -> tuple[float, float]:
    """In a process of its own: seconds, and the MiB the process grew to (getrusage would count its parent's)."""
    began = time.perf_counter()
    way(model, out, method)
    seconds = time.perf_counter() - began
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return seconds, int(line.split()[1]) / 1024


def quantize(
    model: Model, out: Path, method: Method = "minmax", *, consumer: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
) -> None:
    """Write ``out/model.onnx``, as the pipeline does on this machine; ``out`` exists and is empty."""
    int8.quantize(
        model.path, model.calibration, out, consumer=consumer, method=method, percentile=PERCENTILE,
        reduce_range=environment.probe(out).cpu.saturates_int8, progress=lambda phase, share: None,
    )  # fmt: skip


class _Reader(CalibrationDataReader):
    """The samples one by one, as ONNX Runtime's documentation has it."""

    def __init__(self, model: Model) -> None:
        self._inputs = iter([dict(sample.inputs) for sample in model.calibration.samples])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def _bare(model: Model, out: Path, method: Method) -> None:
    logging.disable(logging.WARNING)  # it advises to simplify the graph, which the export did
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        quantize_static(
            model.path, out / "model.onnx", _Reader(model), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=environment.probe(out).cpu.saturates_int8, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=METHODS[method],
            extra_options={"CalibPercentile": PERCENTILE},
        )  # fmt: skip


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, which ends with it."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
