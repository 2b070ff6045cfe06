"""How a variant's graph is opened for judging: as it will be computed where it is served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.values import Signature
from pipeline.build import gate

SIGNATURE = Signature(inputs=(), outputs=(), batch=None)
RUN: Any = SimpleNamespace(plan=SimpleNamespace(signature=SIGNATURE))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    from pipeline.formats.onnx import onnxruntime
    from pipeline.precision import simulate

    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(onnxruntime, "OnnxRuntime", lambda path, _, **how: calls.append((path.name, how)))
    monkeypatch.setattr(simulate, "half", lambda path, folder: folder / f"rounded-{path.name}")
    return calls


@pytest.mark.parametrize(
    ("precision", "engine", "expected"),
    [
        ("fp32", False, ("model.onnx", {})),
        ("fp16", False, ("model.onnx", {})),
        ("int8", False, ("model.onnx", {})),  # ONNX Runtime serves it: its own 8-bit sums are what counts
        ("fp32", True, ("model.onnx", {})),
        ("fp16", True, ("rounded-model.onnx", {})),
        ("bf16", True, ("rounded-model.onnx", {})),
        ("int8", True, ("model.onnx", {"float_qdq": True})),
    ],
)
def test_a_graph_bound_for_tensorrt_is_judged_with_its_rounding(opened, precision, engine, expected) -> None:
    variant: Any = SimpleNamespace(
        kind="tensorrt_rtx" if engine else "onnx",
        engine=object() if engine else None,
        reduction=None if precision == "fp32" else object(),
        precision=precision,
    )
    gate.open_graph(RUN, variant, Path("model.onnx"))
    assert opened == [expected]
