"""int8 by the real ModelOpt, which ci/setup installs apart: what it finds installed decides what a build does."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT
from tests.unit.precision.nets import convnet, images, quantize

MODELOPT = ROOT / ".venv" / "modelopt"


@pytest.fixture(autouse=True)
def modelopt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert (MODELOPT / "modelopt").is_dir(), "ModelOpt is missing: run ci/setup"
    monkeypatch.syspath_prepend(MODELOPT)
    monkeypatch.setenv("PYTHONPATH", str(MODELOPT))
    yield
    importlib.invalidate_caches()


def test_modelopt_quantises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model, outcome = quantize(tmp_path / "a", convnet(32), images(10))
    assert outcome.values["tool"].startswith("nvidia-modelopt ")
    assert outcome.values["calibration"] == {"method": "minmax", "samples": 10}
    assert outcome.values["nodes_int8"] >= 2
    assert [item.name for item in model.graph.output] == ["y"]
    quantize(tmp_path / "b", convnet(32), images(10))
    assert (tmp_path / "a/out/model.onnx").read_bytes() == (tmp_path / "b/out/model.onnx").read_bytes()


def test_modelopt_keeps_nodes(tmp_path: Path) -> None:
    model, outcome = quantize(tmp_path, convnet(64), images(10), keep_nodes=["second"])
    assert "kept in fp32: second (as asked for)" in outcome.notes
    weights = {tensor.name for tensor in model.graph.initializer}
    second = next(node for node in model.graph.node if node.name == "second")
    assert second.input[1] in weights
    first = next(node for node in model.graph.node if node.name == "first")
    assert first.input[1] not in weights


def test_the_onnxruntime_recipe_still_works_afterwards(tmp_path: Path) -> None:
    """ModelOpt replaces parts of onnxruntime.quantization, but in its own process."""
    before, _ = quantize(tmp_path / "a", consumer="onnxruntime")
    quantize(tmp_path / "b", convnet(32))
    after, _ = quantize(tmp_path / "c", consumer="onnxruntime")
    assert before == after


def test_a_net_too_small_for_modelopt_is_quantised_all_the_same(tmp_path: Path) -> None:
    _, outcome = quantize(tmp_path)
    assert outcome.values["tool"].startswith("onnxruntime")
    assert "found no layer that gains by int8" in outcome.notes[0]
