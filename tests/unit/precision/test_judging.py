"""How a graph is opened for judging: as it will be computed where it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.base.values import Signature
from pipeline.formats.table import FORMATS
from pipeline.plan import steps
from pipeline.precision import half, int8, judging, simulate
from pipeline.schema.variants import Precision
from pipeline.servers.planned import Reduction
from tests.unit.base.test_store import step

SIGNATURE = Signature(inputs=(), outputs=(), batch=None)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []
    for module in (half, int8):
        monkeypatch.setattr(module, "OnnxRuntime", lambda path, _, **how: calls.append((path.name, how)))
    monkeypatch.setattr(simulate, "half", lambda path, folder: folder / f"rounded-{path.name}")
    return calls


@pytest.mark.parametrize(
    ("precision", "consumer", "expected"),
    [
        ("fp16", "onnxruntime", ("model.onnx", {})),
        ("int8", "onnxruntime", ("model.onnx", {})),  # ONNX Runtime serves it: its own 8-bit sums are what counts
        ("fp16", "tensorrt", ("rounded-model.onnx", {})),
        ("bf16", "tensorrt", ("rounded-model.onnx", {})),
        ("int8", "tensorrt", ("model.onnx", {"float_qdq": True})),
    ],
)
def test_a_graph_bound_for_tensorrt_is_judged_with_its_rounding(opened, precision, consumer, expected) -> None:
    judging.opened(Path("model.onnx"), SIGNATURE, precision, consumer)
    assert opened == [expected]


def test_a_graph_of_fp32_is_judged_as_it_is_whatever_is_made_of_it() -> None:
    onnx = FORMATS["onnx"].judge
    whole = steps.judge("m_x", onnx, None, step(), step(), {})
    assert whole.function == "pipeline.formats.onnx.judging:judge"
    assert steps.judge("m_x", onnx, _reduction("fp16", "tensorrt"), step(), step(), {}).module == judging.__name__


def _reduction(precision: Precision, consumer: str) -> Reduction:
    assert precision != "fp32"
    return Reduction(
        precision=precision,
        consumer=consumer,
        keep_ops=(),
        keep_nodes=(),
        calibration=None,
        reduce_range=False,
        repair=None,
    )
