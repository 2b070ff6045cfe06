from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from pipeline.base.values import (
    AccuracyResult,
    Artifact,
    Measurement,
    ParityResult,
    ProofLevel,
    RepositoryEntry,
    SmokeCheck,
    SmokeResult,
    Tolerance,
    VariantResult,
)
from pipeline.report import schema, summary, units
from pipeline.report.summary import BuildReport

PARITY = ParityResult(
    max_abs=3.1e-6, max_rel=1e-5, cosine=1.0, top1_agreement=None, samples=12, batch_sizes=(1, 4), passed=True,
    tolerance=Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.9999, min_top1=0.99),
)  # fmt: skip
GOOD = VariantResult(
    identifier="m_onnx", model="m", format="onnx", precision="fp32", parity=PARITY,
    artifact=Artifact(path=Path("model.onnx"), kind="onnx", sha256="ab", size_bytes=45_000_000, tool_versions={}),
    entry=RepositoryEntry(root=Path("repo"), model_name="m_onnx", version=3, created=True),
    accuracy=AccuracyResult(metric="top1", value=0.9875, reference=0.9875, samples=80, passed=True),
    smoke=SmokeResult(model="m_onnx", checks=(SmokeCheck(name="index", protocol="http", outcome="passed"),)),
    notes=("exported [by] dynamo",),
)  # fmt: skip
MEASURED = replace(
    GOOD,
    measurement=Measurement(
        p50_ms=0.5531, p99_ms=1.2, throughput_per_s=1720.4, concurrency=8, batch=1, requests=900, memory_bytes=7_000_000
    ),
)
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
    record = summary.run_report(report(MEASURED, BAD)).model_dump(mode="json")
    jsonschema.validate(record, schema.json_schema(), jsonschema.Draft202012Validator)
    good, bad = record["variants"]
    assert good["measurement"] == {
        "p50_ms": 0.5531, "p99_ms": 1.2, "throughput_per_s": 1720.4, "concurrency": 8, "batch": 1, "requests": 900,
        "memory_bytes": 7_000_000,
    }  # fmt: skip
    assert (good["unmeasured_reason"], bad["measurement"], bad["unmeasured_reason"]) == (None, None, "it failed")
    assert [(pick["purpose"], pick["name"]) for pick in record["picks"]] == [
        ("latency", "m_onnx"), ("throughput", "m_onnx"), ("memory", "m_onnx"),
    ]  # fmt: skip
    assert (good["version"], good["path"], good["size_bytes"]) == (3, "repo/m_onnx/3", 45_000_000)
    assert good["smoke"] == {
        "outcome": "passed",
        "checks": [{"name": "index", "protocol": "http", "outcome": "passed", "detail": ""}],
    }
    assert (bad["version"], bad["smoke"]["outcome"]) == (None, "not run")
    assert bad["error"] == "export[m_torchscript]: no"
    assert record["durations_s"] == {"source[m]": 1.235}


def test_the_table_shows_what_a_person_asks_for() -> None:
    text = shown(report(MEASURED, BAD))
    good, bad = (
        next(line for line in text.splitlines() if f"{name}  " in line) for name in ("m_onnx", "m_torchscript")
    )
    assert good.split() == [
        "✓", "m_onnx", "3", "onnx", "fp32", "45.0", "MB", "3.1e-06", "98.75%", "0.553", "1720", "triton",
    ]  # fmt: skip
    assert bad.split() == ["✗", "m_torchscript", "–", "torchscript", "fp32", *"–" * 5, "not", "run"]
    assert "for latency:    m_onnx (0.553 ms, the only one to choose from, accuracy 98.75%)" in text
    assert "for throughput: m_onnx (1720/s, the only one to choose from, accuracy 98.75%)" in text
    assert "beside the build" in text
    assert "note: m_onnx: exported [by] dynamo" in text
    assert "error: export[m_torchscript]: no" in text
    assert "again: python -m pipeline build m.yaml --variant torchscript" in text


@pytest.mark.parametrize(
    ("level", "server", "shown_as"),
    [
        ("served", "triton", "triton"),
        ("served", "none", "served"),
        ("inspected", "triton", "inspected"),
        ("none", "triton", "none"),
    ],
)
def test_how_far_a_row_was_proven_is_in_the_table_and_in_the_report(
    level: ProofLevel, server: str, shown_as: str
) -> None:
    row = replace(GOOD, smoke=None, proof=level, server=server)
    (line,) = (line for line in shown(report(row)).splitlines() if "m_onnx  " in line)
    assert line.split()[-1] == shown_as
    record = summary.run_report(report(row)).model_dump(mode="json")
    jsonschema.validate(record, schema.json_schema(), jsonschema.Draft202012Validator)
    assert record["variants"][0]["proof"] == level


def test_what_a_run_did_not_come_to_is_shown_as_not_made() -> None:
    never = VariantResult(identifier="m_onnx", model="m", format="onnx", precision="fp32")
    done = report(never, error="source[m]: cannot read m.onnx")
    (line,) = (line for line in shown(done).splitlines() if "m_onnx  " in line)
    assert line.split() == ["-", "m_onnx", "–", "onnx", "fp32", *"–" * 5, "not", "run"]
    assert summary.run_report(done).variants[0].unmeasured_reason == "it was not made"


@pytest.mark.parametrize(
    ("terminal", "width", "gone", "folded"),
    [
        (True, 120, (), False),
        (True, 100, ("diff",), False),
        (True, 80, ("format", "prec", "diff"), False),
        (True, 60, ("format", "prec", "size", "diff", "per s"), True),
        (False, 60, (), False),
    ],
)
def test_the_table_fits_the_terminal_and_is_whole_in_a_log(
    terminal: bool, width: int, gone: tuple[str, ...], folded: bool
) -> None:
    name = "m_a_variant_with_a_long_name"
    rows = [
        replace(MEASURED, identifier="resnet_torchscript", format="torchscript", cached=True),
        replace(MEASURED, identifier=name, format="torchscript"),
    ]
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    console.print(summary.table(report(*rows)), soft_wrap=True)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    table = lines[: lines.index("", 1)]
    assert max(map(len, table)) <= (width if terminal else 200)
    assert any("= ".strip() in line and "resnet_torchscript" in line for line in table)
    assert (name not in "".join(table)) == folded
    assert "…" not in "".join(table)
    names = ("variant", "format", "prec", "size", "diff", "accuracy", "p50 ms", "per s", "proof")
    assert all((column in table[1]) == (column not in gone) for column in names)
    assert (f"no room in {width} columns for: {', '.join(gone)}" in table[-1]) == bool(gone)


def test_what_is_said_of_the_rows_is_broken_between_words_at_a_terminal_only() -> None:
    note = "built and inspected, not run: this machine has no GPU; parity is that of its graph"
    for terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
        console.print(summary.table(report(replace(MEASURED, notes=(note,)))), soft_wrap=True)
        lines = stream.getvalue().splitlines()
        (start,) = (index for index, line in enumerate(lines) if line.startswith("  note: m_onnx: "))
        if terminal:
            assert max(map(len, lines)) <= 80
            assert lines[start : start + 2] == [
                "  note: m_onnx: built and inspected, not run: this machine has no GPU; parity is",
                "    that of its graph",
            ]
        else:
            assert lines[start] == f"  note: m_onnx: {note}"


def test_what_was_not_compared_is_said() -> None:
    engine = replace(GOOD, identifier="m_trt", smoke=None, unmeasured="this machine has no GPU")
    assert "not compared: m_trt (this machine has no GPU)" in shown(report(MEASURED, engine))
    unserved = shown(report(replace(GOOD, smoke=None)))
    assert "for latency:    nothing to choose: no variant was measured (it was not served)" in unserved
    assert "not compared" not in unserved


def test_a_failure_before_the_variants_is_shown() -> None:
    assert "error: source[m]: offline" in shown(report(error="source[m]: offline"))


def test_sizes_are_readable() -> None:
    assert [units.human_bytes(size) for size in (12, 9_900, 45_000_000, 2_400_000_000)] == [
        "12 B", "9.9 kB", "45.0 MB", "2.4 GB",
    ]  # fmt: skip


def test_figures_have_three_digits() -> None:
    values = (0.01234, 0.5531, 0.9996, 1.0, 9.996, 12.34, 99.96, 123.4, 1720.4)
    assert [units.human_figure(value) for value in values] == [
        "0.012", "0.553", "1.00", "1.00", "10.0", "12.3", "100", "123", "1720",
    ]  # fmt: skip


def test_a_smoke_result_without_checks_has_not_passed() -> None:
    assert not SmokeResult(model="m", checks=()).passed
