from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jsonschema
from rich.console import Console

from pipeline.artifacts import (
    AccuracyResult,
    Artifact,
    BuildReport,
    ParityResult,
    RepositoryEntry,
    SmokeCheck,
    SmokeResult,
    Tolerance,
    VariantResult,
)
from pipeline.report import schema, summary

PARITY = ParityResult(
    max_abs=3.1e-6, max_rel=1e-5, cosine=1.0, top1_agreement=None, samples=12, batch_sizes=(1, 4), passed=True,
    tolerance=Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.9999, min_top1=0.99),
)  # fmt: skip
GOOD = VariantResult(
    identifier="m_onnx", model="m", format="onnx", precision="fp32", parity=PARITY,
    artifact=Artifact(path=Path("model.onnx"), kind="onnx", sha256="ab", size_bytes=45_000_000, tool_versions={}),
    entry=RepositoryEntry(root=Path("repo"), model_name="m_onnx", version=3, backend="onnxruntime",
                          config_path=Path("repo/m_onnx/config.pbtxt"), created=True),
    accuracy=AccuracyResult(metric="top1", value=0.9875, reference=0.9875, samples=80, passed=True),
    smoke=SmokeResult(model="m_onnx", checks=(SmokeCheck(name="index", protocol="http", outcome="passed"),)),
    notes=("exported [by] dynamo",),
)  # fmt: skip
BAD = VariantResult(
    identifier="m_torchscript", model="m", format="torchscript", precision="fp32", error="export[m_torchscript]: no",
    exit_code=4, reproduce="python -m pipeline build m.yaml --variant torchscript",
)  # fmt: skip


def report(*variants: VariantResult, **changes: Any) -> BuildReport:
    fields: dict[str, Any] = {
        "run_id": "r", "config": "m.yaml", "environment": {"python": "3.11"}, "durations_s": {"source[m]": 1.23456},
        "exit_code": 4, "variants": variants, "run_dir": Path("runs/r"),
    }  # fmt: skip
    return BuildReport(**{**fields, **changes})


def shown(item: BuildReport) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(summary.table(item))
    return stream.getvalue()


def test_the_report_matches_its_own_schema() -> None:
    record = summary.run_report(report(GOOD, BAD)).model_dump(mode="json")
    jsonschema.validate(record, schema.json_schema(), jsonschema.Draft202012Validator)
    good, bad = record["variants"]
    assert (good["version"], good["path"], good["size_bytes"]) == (3, "repo/m_onnx/3", 45_000_000)
    assert good["smoke"] == {
        "outcome": "passed",
        "checks": [{"name": "index", "protocol": "http", "outcome": "passed", "detail": ""}],
    }
    assert (bad["version"], bad["smoke"]["outcome"]) == (None, "not run")
    assert bad["error"] == "export[m_torchscript]: no"
    assert record["durations_s"] == {"source[m]": 1.235}


def test_the_table_shows_what_a_person_asks_for() -> None:
    text = shown(report(GOOD, BAD))
    row = next(line for line in text.splitlines() if "m_onnx" in line)
    for cell in ("3", "45.0 MB", "3.1e-06", "98.75%", "1/1 ok", "ok"):
        assert cell in row
    assert "note: m_onnx: exported [by] dynamo" in text
    assert "error: export[m_torchscript]: no" in text
    assert "again: python -m pipeline build m.yaml --variant torchscript" in text


def test_a_failure_before_the_variants_is_shown() -> None:
    assert "error: source[m]: offline" in shown(report(error="source[m]: offline"))


def test_sizes_are_readable() -> None:
    assert [summary.human_bytes(size) for size in (12, 9_900, 45_000_000, 2_400_000_000)] == [
        "12 B", "9.9 kB", "45.0 MB", "2.4 GB",
    ]  # fmt: skip


def test_a_smoke_result_without_checks_has_not_passed() -> None:
    assert not SmokeResult(model="m", checks=()).passed
