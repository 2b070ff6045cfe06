"""What a build says at its end, on the terminal, in report.json and as a page."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

from pipeline.report import html, picks, units
from pipeline.report.schema import RunReport
from tests.integration.conftest import ROOT, Built

Build = Callable[[str], Built]


def test_a_served_variant_has_its_speed_and_its_memory_and_an_engine_the_reason_why_not(built: Build) -> None:
    done = built("from_onnx")
    for row in done.report["variants"]:
        if row["name"] == "digits_trt_fp16":
            assert (row["measurement"], row["unmeasured_reason"]) == (None, "this machine has no GPU")
            continue
        figures = row["measurement"]
        assert row["unmeasured_reason"] is None
        assert 0.05 < figures["p50_ms"] <= figures["p99_ms"] < 1000
        assert figures["throughput_per_s"] > 10
        assert (figures["concurrency"], figures["batch"]) == (8, 1)
        assert figures["requests"] >= 3 * (3 + 8)
        assert 20e6 < figures["memory_bytes"] < 2e9
    one, two = (done.variant(f"digits_{key}")["measurement"]["memory_bytes"] for key in ("onnx", "onnx_two_instances"))
    assert two > 1.5 * one
    assert "measure" in done.report["durations_s"]


def test_the_build_ends_with_a_table_and_with_what_to_pick(built: Build) -> None:
    done = built("from_onnx")
    table = done.output[done.output.index("p50 ms") :]
    for row in done.report["variants"]:
        speed = row["measurement"]["p50_ms"] if row["measurement"] else None
        cells = next(line.split() for line in table.splitlines() if f" {row['name']} " in line)
        assert cells[:5] == ["✓", row["name"], "1", row["format"], row["precision"]]
        assert cells[-3:] == (["–", "–", "inspected"] if speed is None else [cells[-3], cells[-2], "triton"])
        if speed is not None:
            assert abs(float(cells[-3]) - speed) <= 0.01 * speed
    assert [pick["purpose"] for pick in done.report["picks"]] == ["latency", "throughput", "memory"]
    for pick in done.report["picks"]:
        assert re.search(rf"for {pick['purpose']}: +{pick['name']} \({re.escape(pick['reason'])}\)", table)
    assert "not compared: digits_trt_fp16 (this machine has no GPU)" in table
    assert f"  {picks.CAVEAT}\n" in table


def test_what_the_choice_is_read_off_is_measured_of_every_form(built: Build) -> None:
    """Size, difference, accuracy, latency and throughput stand side by side, as report.json has them."""
    done = built("from_onnx")
    head, *lines = done.output[done.output.index("variant ") :].splitlines()
    assert " ".join(head.split()) == "variant v format prec size diff accuracy p50 ms per s proof"
    for row in done.report["variants"]:
        cells = next(line.split() for line in lines if f" {row['name']} " in line)
        size, unit, diff, accuracy, p50, rate = cells[5:11]
        assert f"{size} {unit}" == units.human_bytes(row["size_bytes"])
        assert diff == f"{row['parity']['max_abs']:.1e}"
        assert accuracy == f"{row['accuracy']['value']:.2%}"
        speed = row["measurement"]
        figures = (speed["p50_ms"], speed["throughput_per_s"]) if speed else ()
        assert [p50, rate] == ([units.human_figure(figure) for figure in figures] or ["–", "–"])


def test_the_page_beside_report_json_says_the_same(built: Build) -> None:
    done = built("from_onnx")
    text = (done.folder / "report.html").read_text()
    record = RunReport.model_validate(done.report)
    assert text == html.page(record)
    assert text.count("<circle") == 4 + 5  # speed: what was served; accuracy: the engine too
    own = Path(re.search(r"^  report (.*)$", done.output, re.MULTILINE)[1])
    assert own.name == "report.html"
    assert own.parent == done.work_dir / "runs" / record.run_id
    assert own.read_text() == text


def test_the_ensemble_has_figures_and_is_no_pick(built: Build) -> None:
    done = built("mnist_convnet")
    ensemble = done.variant("mnist_convnet")["measurement"]
    assert ensemble["throughput_per_s"] > 10
    assert ensemble["memory_bytes"] > 100e6  # three processes: preprocessing, the variant, postprocessing
    assert "mnist_convnet" not in {pick["name"] for pick in done.report["picks"]}


def test_without_a_server_nothing_is_measured_and_that_is_said(built: Build, tmp_path: Path) -> None:
    again = built("from_onnx").copy(tmp_path / "copy").again("--no-serve")
    assert again.exit_code == 0, again.output
    assert {row["unmeasured_reason"] for row in again.report["variants"]} == {"it was not served"}
    assert "for latency:    nothing to choose: no variant was measured (it was not served)" in again.output
    assert again.report["picks"][2]["name"] == "digits_onnx_int8"


def test_the_page_s_templates_are_installed_with_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pipeline.report"]
    folder = ROOT / "pipeline" / "report"
    given = {path for pattern in data for path in folder.glob(pattern)}
    assert given == set((folder / "templates").iterdir()) != set()
