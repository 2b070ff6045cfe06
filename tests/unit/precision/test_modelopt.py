import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.base.errors import StageError
from pipeline.precision import modelopt
from tests.unit.precision.nets import convnet, images, saved

SAMPLES = images(10)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """Run the child in this process; gives the environments it would have had."""
    environments: list[Mapping[str, str]] = []

    def run(argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str]) -> str:
        assert argv[:3] == [sys.executable, "-m", "pipeline.precision.modelopt"]
        assert timeout_s > 600
        environments.append(env)
        modelopt._main(Path(argv[3]))
        return ""

    monkeypatch.setattr(modelopt.command, "run", run)
    return environments


def install(monkeypatch: pytest.MonkeyPatch, quantize: Any) -> None:
    module = types.ModuleType("modelopt.onnx.quantization")
    vars(module)["quantize"] = quantize
    for name in ("modelopt", "modelopt.onnx"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", module)


def test_the_child_is_asked_for_what_the_parent_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: list[Mapping[str, str]]
) -> None:
    asked: dict[str, Any] = {}
    fed: list[np.ndarray] = []

    def fake(file: str, **options: Any) -> None:
        asked.update(options)
        reader = options["calibration_data_reader"]
        first = reader.get_first()["x"]  # as ModelOpt does, for shapes
        reader.get_next()
        reader.rewind()
        while feed := reader.get_next():
            fed.append(feed["x"])
        assert (fed[0] == first).all()
        onnx.save(onnx.load(file), options["output_path"])

    install(monkeypatch, fake)
    file = saved(convnet(), tmp_path)
    model, taken = modelopt.quantize(file, SAMPLES, keep_ops=["Add"], keep_nodes={"second", "a.b"})
    assert taken == 10
    assert model == onnx.load(str(file))
    assert np.array_equal(np.concatenate(fed), np.concatenate([sample.inputs["x"] for sample in SAMPLES.samples]))
    assert asked["op_types_to_exclude"] == ["Add"]
    assert asked["nodes_to_exclude"] == ["a\\.b$", "second$"]
    assert (asked["quantize_mode"], asked["calibration_method"]) == ("int8", "max")
    assert (asked["calibration_eps"], asked["high_precision_dtype"]) == (["cpu"], "fp32")
    assert child[0]["TMPDIR"] == str(tmp_path)
    assert child[0]["PATH"]


def test_samples_that_modelopt_does_not_take_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: list[Mapping[str, str]]
) -> None:
    def fake(file: str, **options: Any) -> None:
        options["calibration_data_reader"].get_next()
        onnx.save(onnx.load(file), options["output_path"])

    install(monkeypatch, fake)
    _, taken = modelopt.quantize(saved(convnet(), tmp_path), SAMPLES, keep_ops=[], keep_nodes=[])
    assert taken == json.loads((tmp_path / "taken.json").read_text()) == 4


def test_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelopt.importlib.util, "find_spec", lambda name: None)
    assert modelopt.version() is None
    monkeypatch.setattr(modelopt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(modelopt.importlib.metadata, "version", lambda name: {"nvidia-modelopt": "0.47.0"}[name])
    assert modelopt.version() == "0.47.0"

    def missing(name: str) -> str:
        raise modelopt.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(modelopt.importlib.metadata, "version", missing)
    assert modelopt.version() is None


def test_a_failing_child_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Sequence[str], **options: Any) -> str:
        raise StageError("python exited with 1", found="ModuleNotFoundError: No module named 'lief'")

    monkeypatch.setattr(modelopt.command, "run", run)
    with pytest.raises(StageError, match="ModelOpt failed") as raised:
        modelopt.quantize(saved(convnet(), tmp_path), SAMPLES, keep_ops=[], keep_nodes=[])
    assert "No module named 'lief'" in raised.value.found
