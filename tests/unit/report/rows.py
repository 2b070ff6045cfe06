"""Rows of a report as a build makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.values import (
    AccuracyResult,
    Artifact,
    Measurement,
    RepositoryEntry,
    SmokeCheck,
    SmokeResult,
    VariantResult,
)
from pipeline.report.schema import RunReport, VariantReport
from pipeline.report.summary import BuildReport, run_report


def result(
    key: str,
    *,
    p50_ms: float | None = None,
    per_s: float | None = None,
    accuracy: float | None = 0.98,
    size_bytes: int = 1_000_000,
    memory_bytes: int | None = None,
    **changes: Any,
) -> VariantResult:
    """A variant ``m_<key>`` that passed; measured where it has a p50."""
    name = f"m_{key}" if key else "m"
    fields: dict[str, Any] = {
        "identifier": name,
        "model": "m",
        "format": "onnx",
        "precision": "fp32",
        "artifact": Artifact(
            path=Path("model.onnx"), kind="onnx", sha256="ab" * 32, size_bytes=size_bytes, tool_versions={}
        ),
        "entry": RepositoryEntry(root=Path("repo"), model_name=name, version=1, created=True),
        "smoke": SmokeResult(model=name, checks=(SmokeCheck(name="index", protocol="http", outcome="passed"),)),
    }
    if accuracy is not None:
        fields["accuracy"] = AccuracyResult(metric="top1", value=accuracy, reference=0.98, samples=80, passed=True)
    if p50_ms is not None:
        fields["measurement"] = Measurement(
            p50_ms=p50_ms, p99_ms=2 * p50_ms, throughput_per_s=per_s or 1000 / p50_ms, concurrency=8, batch=1,
            requests=100, memory_bytes=memory_bytes,
        )  # fmt: skip
    return VariantResult(**{**fields, **changes})


def report(*results: VariantResult, **changes: Any) -> BuildReport:
    """A build of these rows."""
    fields: dict[str, Any] = {
        "run_id": "r", "config": "m.yaml", "environment": {"python": "3.11", "gpu": None}, "exit_code": 0,
        "durations_s": {"source[m]": 1.5, "measure": 0.5}, "variants": results, "run_dir": Path("runs/r"),
    }  # fmt: skip
    return BuildReport(**{**fields, **changes})


def record(*results: VariantResult, **changes: Any) -> RunReport:
    """Its report.json."""
    return run_report(report(*results, **changes))


def rows(*results: VariantResult) -> list[VariantReport]:
    """Its variants in report.json."""
    return record(*results).variants
