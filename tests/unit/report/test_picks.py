from __future__ import annotations

import pytest

from pipeline.base.values import SmokeCheck, SmokeResult, VariantResult
from pipeline.report import picks
from tests.unit.report.rows import result, rows


def chosen(*results: VariantResult) -> dict[str, tuple[str | None, str]]:
    return {pick.purpose: (pick.name, pick.reason) for pick in picks.choose(rows(*results))}


def test_each_purpose_has_its_own_pick_with_the_reason() -> None:
    found = chosen(
        result("onnx", p50_ms=1.0, per_s=1000, size_bytes=4_000_000),
        result("int8", p50_ms=0.5, per_s=900, size_bytes=2_000_000, accuracy=0.97),
        result("fp16", p50_ms=0.8, per_s=3000, size_bytes=1_000_000),
    )
    assert found == {
        "latency": ("m_int8", "0.500 ms, 2.0x faster than m_onnx, accuracy 97.00%"),
        "throughput": ("m_fp16", "3000/s, 3.0x as much as m_onnx, accuracy 98.00%"),
        "memory": ("m_fp16", "1.0 MB on disk, 4.0x smaller than m_onnx, accuracy 98.00%"),
    }


def test_of_near_equals_the_more_accurate_is_taken_and_that_is_said() -> None:
    found = chosen(
        result("int8", p50_ms=1.0, accuracy=0.97), result("onnx", p50_ms=1.04, accuracy=0.98),
        result("torchscript", p50_ms=1.06, accuracy=0.99),
    )  # fmt: skip
    assert found["latency"] == (
        "m_onnx",
        "1.04 ms, within 5 % of m_int8 and more accurate, 1.02x faster than m_torchscript, accuracy 98.00%",
    )


def test_of_equally_accurate_near_equals_the_smaller_is_taken() -> None:
    found = chosen(result("onnx", p50_ms=1.0), result("fp16", p50_ms=1.05, size_bytes=500_000))
    assert found["latency"] == ("m_fp16", "1.05 ms, within 5 % of m_onnx and the smallest file, accuracy 98.00%")


def test_without_any_difference_the_better_figure_decides() -> None:
    found = chosen(result("a", p50_ms=1.02), result("b", p50_ms=1.0))
    assert found["latency"] == ("m_b", "1.00 ms, within 5 % of m_a and as good as any, accuracy 98.00%")


def test_resident_memory_decides_where_it_is_known() -> None:
    found = chosen(
        result("small_file", p50_ms=1, size_bytes=1_000, memory_bytes=300_000_000),
        result("small_process", p50_ms=1, size_bytes=2_000, memory_bytes=70_000_000),
        result("engine", size_bytes=10, unmeasured="this machine has no GPU", smoke=None),
    )
    name, reason = found["memory"]
    assert name == "m_small_process"
    assert reason == "70.0 MB resident, 2.0 kB on disk, 4.3x smaller than m_small_file, accuracy 98.00%"


def test_rows_that_did_not_pass_and_deployments_are_no_candidates() -> None:
    failed = SmokeResult(model="m_wrong", checks=(SmokeCheck(name="index", protocol="http", outcome="failed"),))
    fast = {"p50_ms": 0.1, "size_bytes": 10}
    found = chosen(
        result("onnx", p50_ms=1.0),
        result("refused", **fast, error="parity[m_refused]: no", exit_code=4),
        result("wrong", **fast, smoke=failed),
        result("skipped", **fast, skipped="no TensorRT"),
        result("", **fast, format="ensemble"),
        result("onnx.torchserve", **fast, identifier="m.torchserve", server="torchserve"),
    )
    assert {name for name, _ in found.values()} == {"m_onnx"}
    assert found["latency"][1] == "1.00 ms, the only one to choose from, accuracy 98.00%"


def test_what_was_not_measured_is_left_out_of_speed_and_said() -> None:
    variants = rows(
        result("onnx", p50_ms=1.0),
        result("trt", smoke=None, unmeasured="this machine has no GPU"),
        result("trt8", smoke=None, unmeasured="this machine has no GPU"),
        result("broken", error="no", exit_code=4),
    )
    assert picks.left_out(variants) == {"this machine has no GPU": ["m_trt", "m_trt8"]}
    assert [pick.name for pick in picks.choose(variants)] == ["m_onnx", "m_onnx", "m_onnx"]


def test_without_figures_there_is_nothing_to_choose_but_by_size() -> None:
    found = chosen(result("onnx", smoke=None), result("int8", smoke=None, size_bytes=1_000))
    assert found["latency"] == (None, "nothing to choose: no variant was measured (it was not served)")
    assert found["throughput"][0] is None
    assert found["memory"][0] == "m_int8"


def test_when_nothing_passed_that_is_said() -> None:
    assert set(chosen(result("onnx", error="no", exit_code=4)).values()) == {
        (None, "nothing to choose: no variant passed")
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"error": "no", "exit_code": 5}, "it failed"),
        ({"skipped": "no TensorRT", "unmeasured": "x"}, "it was not made"),
        ({"unmeasured": "no answer over gRPC"}, "no answer over gRPC"),
        ({"smoke": None}, "it was not served"),
        ({}, "its speed was not measured"),
    ],
)
def test_a_missing_measurement_has_a_reason(changes: dict[str, object], reason: str) -> None:
    (row,) = rows(result("onnx", **changes))  # type: ignore[arg-type]
    assert (row.measurement, row.unmeasured_reason) == (None, reason)
