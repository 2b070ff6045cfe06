"""How a variant's graph is opened for judging: as it will be computed where it is served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import make
from pipeline.artifacts import Signature
from pipeline.engine.failures import absent
from pipeline.errors import MissingError
from pipeline.tensorrt_flavours import flavour
from tests.unit.engine.test_spec import spec

SIGNATURE = Signature(inputs=(), outputs=(), batch=None)
RUN: Any = SimpleNamespace(plan=SimpleNamespace(signature=SIGNATURE))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    from pipeline.optimize import simulate
    from pipeline.runtimes import onnxruntime

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
    make._open(RUN, variant, Path("model.onnx"))
    assert opened == [expected]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("lack", ["a library that does not load", "a full disk"])
def test_what_only_the_child_finds_missing_is_skipped_where_the_yaml_allows_it(
    monkeypatch, tmp_path, skip, lack
) -> None:
    told: dict[str, Any] = {}
    run: Any = SimpleNamespace(update=lambda variant, **changes: told.update(changes))
    engine: Any = SimpleNamespace(spec=spec(), step=object(), skip=skip)

    def fail(*_: Any) -> Any:
        if lack == "a full disk":
            raise MissingError("no space left on the disk")
        raise absent(flavour("tensorrt"), "import tensorrt: libnvinfer.so.10: cannot open")

    monkeypatch.setattr(make, "_made", fail)
    graph: Any = SimpleNamespace(properties={}, path=tmp_path)
    if skip and lack != "a full disk":
        assert make._engine(run, object(), engine, graph) is None
        assert told["skipped"] == "import tensorrt: libnvinfer.so.10: cannot open"
        assert (told["artifact"], told["parity"], told["accuracy"]) == (None, None, None)  # those of its graph
        return
    with pytest.raises(MissingError):
        make._engine(run, object(), engine, graph)
    assert not told
