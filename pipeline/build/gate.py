"""The gate of a variant: its graph or engine, opened in this process, against the golden samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base.errors import GateError
from pipeline.base.store import Step
from pipeline.base.values import AccuracyResult, ParityResult, Runtime
from pipeline.build.run import Run
from pipeline.plan import Variant


def judge(run: Run, variant: Variant, step: Step, opened: Callable[[], Runtime]) -> None:
    """In-process parity and accuracy of a graph or an engine, and the gates; an engine's replace its graph's.

    Raises:
        GateError: the numbers are refused; they are kept in the result.
    """
    with run.stage(step.name, variant.identifier) as stage:
        entry = run.step(step, stage, lambda _: _measure(run, variant, opened()))
        parity = _parity_of(entry.values["parity"], variant)
        accuracy = AccuracyResult(**entry.values["accuracy"]) if entry.values["accuracy"] else None
        cached = run.results[variant.key].cached and entry.cached
        run.update(variant, parity=parity, accuracy=accuracy, cached=cached)
        run.note_rebuilt(variant, step, entry)
        stage.result = f"max abs {parity.max_abs:.1e}" + (f" · accuracy {accuracy.value:.2%}" if accuracy else "")
        for verdict in (parity, accuracy):
            if verdict and not verdict.passed:
                raise GateError(
                    f"{step.name}: refused by a gate",
                    found=verdict.reason,
                    where=run.plan.loaded.where("variants", variant.key),
                    hint="nothing was emitted; try another exporter, method or calibration, keep nodes in fp32, "
                    "or loosen `gates` if you accept it",
                )


def _measure(run: Run, variant: Variant, runtime: Runtime) -> Mapping[str, Any]:
    from pipeline.proof import parity

    sizes = parity.batch_sizes(variant.max_batch_size)
    measured = parity.measure(runtime, run.golden, batch_sizes=sizes, tolerance=variant.tolerance)
    accuracy = parity.accuracy(runtime, run.golden, gate=variant.accuracy_gate)
    return {"parity": asdict(measured), "accuracy": asdict(accuracy) if accuracy else None}


def verdict(run: Run, variant: Variant, path: Path) -> Any:
    """The gates' word on one try of a repair, a ``repair.Verdict``."""
    from pipeline.precision.repair import Verdict

    measured = _measure(run, variant, open_graph(run, variant, path))
    parity, accuracy = measured["parity"], measured["accuracy"]
    figures = {"accuracy": accuracy["value"]} if accuracy else {}
    figures |= {name: parity[name] for name in ("max_abs", "cosine")}
    refused = [verdict["reason"] for verdict in (parity, accuracy) if verdict and not verdict["passed"]]
    return Verdict(passed=not refused, figures=figures, reason="; ".join(refused))


def _parity_of(values: Mapping[str, Any], variant: Variant) -> ParityResult:
    typed = {**values, "batch_sizes": tuple(values["batch_sizes"]), "tolerance": variant.tolerance}
    return ParityResult(**typed)


def open_graph(run: Run, variant: Variant, path: Path) -> Runtime:
    """The runtime a graph is judged in: as it will be served or, where it is bound for TensorRT, with its rounding.

    TensorRT's own arithmetic needs a GPU; ONNX Runtime's CPU would add faults of its own: 8-bit sums that saturate
    without VNNI, and float16 operators computed in float32.
    """
    signature = run.plan.signature
    if variant.kind == "torchscript":
        from pipeline.formats.torchscript.runtime import TorchScriptRuntime

        return TorchScriptRuntime(path, signature)
    if variant.kind == "saved_model":
        from pipeline.formats.saved_model.runtime import SavedModelRuntime

        return SavedModelRuntime(path, signature)
    from pipeline.formats.onnx.onnxruntime import OnnxRuntime

    if variant.engine is None or variant.reduction is None:
        return OnnxRuntime(path, signature)
    if variant.precision == "int8":
        return OnnxRuntime(path, signature, float_qdq=True)
    from pipeline.precision import simulate

    with tempfile.TemporaryDirectory() as folder:
        return OnnxRuntime(simulate.half(path, Path(folder)), signature)


def open_engine(run: Run, variant: Variant, folder: Path) -> Runtime:
    """The runtime an engine is judged in: TensorRT's own, on this machine's GPU."""
    from pipeline.formats.tensorrt.runtime import TensorRtRuntime

    assert variant.engine is not None
    return TensorRtRuntime(folder / variant.engine.file_here, run.plan.signature, variant.engine.spec.flavour)
