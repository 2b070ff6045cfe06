"""Keras models and SavedModels of every kind, opened, converted and refused by the real TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.base.errors import StageError
from pipeline.base.values import Signature, SourceModel, TensorSpec
from pipeline.formats import tf2onnx
from pipeline.formats.saved_model import export as exporting
from pipeline.formats.saved_model import messages, process, tfserving_messages
from pipeline.formats.saved_model.messages import ModelFile
from pipeline.formats.saved_model.process import RemoteRuntime
from pipeline.formats.saved_model.runtime import SavedModelRuntime
from tests.integration.conftest import ROOT, pipeline
from tests.unit.sources import tiny

SERVING_API = ROOT / ".venv" / "tfserving"


@dataclass(frozen=True)
class Made:
    folder: Path
    answers: dict[str, np.ndarray]
    protobuf: dict[str, Any]

    def file(self, name: str, **more: Any) -> ModelFile:
        kind = "keras" if name.endswith((".keras", ".h5")) else "saved_model"
        return ModelFile(kind=kind, path=str(self.folder / name), **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    assert (SERVING_API / "tensorflow_serving").is_dir(), "tensorflow-serving-api is missing: run ci/setup"
    folder = tmp_path_factory.mktemp("tensorflow")
    script = ROOT / "tests" / "models" / "make_tensorflow.py"
    done = subprocess.run(
        [sys.executable, script, folder],
        env={**os.environ, "PYTHONPATH": str(SERVING_API)},
        input=tfserving_messages.models_config(["a", 'b "c"'], "/models"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as archive:
        answers = {name: archive[name] for name in archive.files}
    return Made(folder, answers, json.loads((folder / "protobuf.json").read_text()))


def signature(inputs: dict[str, int], outputs: dict[str, int]) -> Signature:
    sides = (
        tuple(TensorSpec(name=name, dtype="float32", shape=("N", size)) for name, size in side.items())
        for side in (inputs, outputs)
    )
    return Signature(inputs=next(sides), outputs=next(sides), batch="N")


ONE = signature({"x": 4}, {"scores": 3})
TWO = signature({"a": 2, "b": 2}, {"total": 2, "difference": 2})
PAIR = signature({"x": 2}, {"y": 2})


@pytest.mark.parametrize("name", ["one.keras", "one.h5", "one_saved"])
def test_every_kind_answers_as_keras_does_under_the_names_of_the_yaml(made: Made, name: str) -> None:
    runtime = RemoteRuntime(made.file(name), ONE)
    answer = runtime.run({"x": made.answers["x"]})
    np.testing.assert_allclose(answer["scores"], made.answers["probabilities"], atol=1e-6)
    alone = runtime.run({"x": made.answers["x"][1:2]})
    np.testing.assert_allclose(alone["scores"], made.answers["probabilities"][1:2], atol=1e-6)
    theirs = ("output_0", "keras_tensor") if name == "one_saved" else ("dense_1", "input_layer")
    assert runtime.notes == (
        f"inputs without the YAML's names are taken in order: x is its {theirs[1]}",
        f"outputs without the YAML's names are taken in order: scores is its {theirs[0]}",
    )


def test_equal_names_are_taken_by_name_in_any_order(made: Made) -> None:
    runtime = RemoteRuntime(made.file("two.keras"), TWO)
    answer = runtime.run({"a": made.answers["a"], "b": made.answers["b"]})
    assert runtime.notes == ()
    for name in ("total", "difference"):
        np.testing.assert_allclose(answer[name], made.answers[name], atol=1e-6)
    np.testing.assert_array_equal(answer["difference"], made.answers["a"] - made.answers["b"])


def test_mappings_in_and_out(made: Made) -> None:
    runtime = RemoteRuntime(made.file("mapping.keras"), signature({"a": 2}, {"doubled": 2}))
    np.testing.assert_array_equal(runtime.run({"a": made.answers["a"]})["doubled"], 2 * made.answers["a"])


def _export(model: ModelFile, specs: Signature, job: str, out: Path, **more: Any) -> dict[str, Any]:
    """As export.tensorflow does it, but in the process that is there already."""
    request = {**messages.about(model, specs), "out": str(out), **more}
    return process.shared().call(job, request)[0]


@pytest.mark.parametrize(
    ("name", "specs", "inputs"), [("one.h5", ONE, ("x",)), ("two.keras", TWO, ("a", "b")), ("one_saved", ONE, ("x",))]
)
def test_conversions_have_the_names_of_the_yaml_and_the_same_answers(
    made: Made, tmp_path: Path, name: str, specs: Signature, inputs: tuple[str, ...]
) -> None:
    feeds = {key: made.answers[key] for key in inputs}
    expected = RemoteRuntime(made.file(name), specs).run(feeds)
    _export(made.file(name), specs, "save", tmp_path / "saved")
    _export(made.file(name), specs, "onnx", tmp_path / "m.onnx", opset=18)
    served = SavedModelRuntime(tmp_path / "saved", specs).run(feeds)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    converted = dict(zip([item.name for item in session.get_outputs()], session.run(None, feeds), strict=True))
    assert {item.name for item in session.get_inputs()} == set(inputs)
    for key, reference in expected.items():
        np.testing.assert_allclose(served[key], reference, atol=1e-6)
        np.testing.assert_allclose(converted[key], reference, atol=1e-6)
    values, _ = process.shared().call("metadata", {"path": str(tmp_path / "saved"), "name": "m", "version": 1})
    shown = values["metadata"]["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert set(shown["inputs"]) == set(inputs)
    assert shown["inputs"][inputs[0]]["tensor_shape"]["dim"][0] == {"size": "-1", "name": ""}
    assert shown["method_name"] == "tensorflow/serving/predict"


def test_a_saved_model_of_the_yamls_names_is_taken_as_it_is(made: Made, tmp_path: Path) -> None:
    _export(made.file("one.keras"), ONE, "save", tmp_path / "first")
    values = _export(ModelFile(kind="saved_model", path=str(tmp_path / "first")), ONE, "save", tmp_path / "second")
    assert values == {"as_given": True, "notes": []}
    assert (tmp_path / "first/saved_model.pb").read_bytes() == (tmp_path / "second/saved_model.pb").read_bytes()


def test_nothing_is_left_in_the_temporary_folder(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoGraph writes the code that it makes there."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    request = messages.about(made.file("one.keras"), ONE)
    with process.fresh() as child:
        child.call("save", {**request, "out": str(tmp_path / "saved")})
        child.call("onnx", {**request, "out": str(tmp_path / "m.onnx"), "opset": 18})
        assert list(temporary.iterdir())
    assert not list(temporary.iterdir())


def test_another_signature_is_served_as_serving_default(made: Made, tmp_path: Path) -> None:
    values = _export(made.file("signed", signature="second"), PAIR, "save", tmp_path / "saved")
    assert values["notes"] == ["saved again: its signature second is serving_default of the YAML's names"]
    answer = SavedModelRuntime(tmp_path / "saved", PAIR).run({"x": made.answers["a"]})
    np.testing.assert_array_equal(answer["y"], 2 * made.answers["a"])


def test_two_processes_write_the_same_bytes(made: Made, tmp_path: Path) -> None:
    opened = SourceModel(kind="keras", module=made.file("one.keras"), path=None, runtime=None)  # type: ignore[arg-type]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with process.fresh() as child, pytest.MonkeyPatch.context() as patch:  # one for both files
            patch.setattr(process, "fresh", lambda child=child: contextlib.nullcontext(child))
            exporting.saved_model(opened, signature=ONE, out_dir=tmp_path / name)
            tf2onnx.export(
                opened, signature=ONE, exporter="tf2onnx", opset=17, simplify=False, max_ir_version=9,
                out_dir=tmp_path / name,
            )  # fmt: skip
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert {path.name for path in files} >= {
        "model.onnx",
        "saved_model.pb",
        "variables.index",
        "variables.data-00000-of-00001",
    }
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    assert onnx.load(tmp_path / "a/model.onnx").opset_import[0].version == 17


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_code_in_a_file_needs_consent(made: Made) -> None:
    for name in ("code.keras", "code.h5"):
        with pytest.raises(StageError, match="holds Python code") as caught:
            RemoteRuntime(made.file(name), ONE)
        assert "allow_lambda: true" in caught.value.hint
        answer = RemoteRuntime(made.file(name, allow_lambda=True), ONE).run({"x": made.answers["x"]})
        np.testing.assert_array_equal(answer["scores"], 2 * made.answers["x"][:, :3])


@pytest.mark.parametrize(
    ("name", "more", "what", "found"),
    [
        ("unsigned", {}, "has no signatures", "which tensors a server takes"),
        ("signed", {}, "has no signature 'serving_default'", "it has first, second"),
        ("signed", {"signature": "thrid"}, "has no signature 'thrid'", "it has first, second"),
        ("one_saved/variables", {}, "not a SavedModel that can be served", "does not exist"),
        ("text.keras", {}, "not a readable Keras file", ""),
        ("text.h5", {}, "not a readable Keras file", ""),
        ("cut", {}, "not a SavedModel that can be served", ""),
    ],
)
def test_wrong_files_are_told(made: Made, name: str, more: dict[str, str], what: str, found: str) -> None:
    for text in ("text.keras", "text.h5"):
        (made.folder / text).write_text("no model")
    (made.folder / "cut").mkdir(exist_ok=True)
    (made.folder / "cut/saved_model.pb").write_bytes((made.folder / "one_saved/saved_model.pb").read_bytes()[:999])
    with pytest.raises(StageError) as caught:
        RemoteRuntime(made.file(name, **more), PAIR)
    assert what in caught.value.what
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("given", "what", "found"),
    [
        ({"saved_model": {"directory": "unsigned"}}, "has no signatures", ""),
        ({"saved_model": {"directory": "empty"}}, "not a SavedModel that can be served", "FOLDER/empty"),
        ({"saved_model": {"directory": "dangling"}}, "cannot be read whole", "FOLDER/dangling/variables/lost"),
        ({"keras": {"file": "text.keras"}}, "not a readable Keras file", "FOLDER/text.keras"),
    ],
)
def test_a_source_that_cannot_be_opened_is_named_by_the_path_the_user_gave(
    made: Made, tmp_path: Path, given: dict[str, Any], what: str, found: str
) -> None:
    (tmp_path / "unsigned").symlink_to(made.folder / "unsigned")
    (tmp_path / "empty").mkdir()
    shutil.copytree(made.folder / "one_saved", tmp_path / "dangling")
    (tmp_path / "dangling/variables/lost").symlink_to("nowhere")
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match=what) as caught:
        tiny.values(tiny.task(tmp_path, given, ONE), lambda text, share: None)
    name = next(iter(given.values()))
    assert caught.value.where == str(tmp_path / (name.get("directory") or name["file"]))
    assert found.replace("FOLDER", str(tmp_path)) in caught.value.found
    assert str(tmp_path / "out") not in str(caught.value)


def test_other_tensors_than_the_yamls_are_all_told(made: Made) -> None:
    wrong = Signature(
        inputs=(TensorSpec(name="x", dtype="int32", shape=("N", 5)),), outputs=ONE.outputs, batch="N"
    )  # fmt: skip
    with pytest.raises(StageError, match="inputs are not the YAML's") as caught:
        RemoteRuntime(made.file("one.keras"), wrong)
    assert "is float32; the YAML says int32" in caught.value.found
    assert "has shape [?, 4]; the YAML says [N, 5]" in caught.value.found
    with pytest.raises(StageError, match="outputs are not the YAML's"):
        RemoteRuntime(made.file("one.keras"), signature({"x": 4}, {"scores": 9}))
    with pytest.raises(StageError, match="the model has 2 inputs, the YAML 1"):
        RemoteRuntime(made.file("two.keras"), ONE)


def test_a_failing_sample_names_its_inputs(made: Made) -> None:
    for name in ("one.keras", "one_saved"):
        runtime = RemoteRuntime(made.file(name), ONE)
        with pytest.raises(StageError, match="failed on a sample") as caught:
            runtime.run({"x": np.zeros((2, 5), np.float32)})
        assert "float32[2, 5]" in caught.value.hint


# ---- training -----------------------------------------------------------------------------------------------------

USER = """
import keras
import numpy as np

def logits():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)])

def probabilities():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.1), keras.layers.Dense(4, activation="softmax")])

def unbuilt():
    return keras.Sequential([keras.layers.Dense(4)])

def narrow():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])

def data():
    random = np.random.default_rng(0)
    x, targets = random.normal(size=(120, 8)).astype(np.float32), np.arange(120) % 4
    x[np.arange(120), targets] += 4
    return {"train": ({"x": x[:80]}, targets[:80]), "test": ({"x": x[80:]}, targets[80:])}
"""


def _train(folder: Path, name: str, model: str) -> dict[str, Any]:
    (folder / "user.py").write_text(USER)
    (folder / name).mkdir()
    settings = {"callable": f"user.py:{model}", "data": {"callable": "user.py:data"}, "epochs": 6, "batch_size": 8}
    source = {"keras": {"train": {**settings, "learning_rate": 0.02}}}
    return tiny.values(tiny.task(folder, source, signature({"x": 8}, {"y": 4}), out=name), lambda text, share: None)


def test_training_learns_and_repeats_itself(tmp_path: Path) -> None:
    first = _train(tmp_path, "a", "logits")
    again = _train(tmp_path, "b", "logits")
    assert first["accuracy"] >= 0.95
    assert (first["train_samples"], first["test_samples"], first["epochs_run"]) == (80, 40, 6)
    assert first["history"] == again["history"]
    weights = [(tmp_path / name / "model.weights.h5").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_probabilities_are_taken_as_such(tmp_path: Path) -> None:
    assert _train(tmp_path, "a", "probabilities")["accuracy"] >= 0.95


@pytest.mark.parametrize(
    ("model", "what", "found"),
    [("unbuilt", "returned no built Keras model", "not built"), ("narrow", "do not fit the classes", "has 4 classes")],
)
def test_models_that_cannot_be_trained(tmp_path: Path, model: str, what: str, found: str) -> None:
    with pytest.raises(StageError, match=what) as caught:
        _train(tmp_path, "a", model)
    assert found in caught.value.found


# ---- the process, and TF-Serving's messages -----------------------------------------------------------------------


def test_a_killed_process_is_an_error_and_the_next_use_starts_another(made: Made) -> None:
    runtime = RemoteRuntime(made.file("one.keras"), ONE)
    process.shared()._child.kill()
    with pytest.raises(StageError, match="the TensorFlow process died") as caught:
        runtime.run({"x": made.answers["x"]})
    assert "exit status -9" in caught.value.found
    again = RemoteRuntime(made.file("one.keras"), ONE).run({"x": made.answers["x"]})
    np.testing.assert_allclose(again["scores"], made.answers["probabilities"], atol=1e-6)


def test_our_messages_are_those_of_tensorflow_serving(made: Made) -> None:
    theirs = made.protobuf["messages"]
    for name, fields in {**tfserving_messages.CONFIG, **tfserving_messages.PREDICT}.items():
        for field in fields:
            assert list(field) in theirs[name], (name, field)
    assert made.protobuf["listed"] == {"a": ["/models/a", "tensorflow"], 'b "c"': ['/models/b "c"', "tensorflow"]}
    info = {"x": {"dtype": "DT_FLOAT"}}
    shown = {
        "model_spec": {"name": "m", "version": "7"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": {"inputs": info}}}},
    }
    inputs = {"x": np.array([[1.0, 2.0]], np.float32)}
    _, built = process.shared().call("request", {"metadata": shown}, inputs)
    assert built["request"].tobytes().hex() == made.protobuf["request"]


def test_without_tensorflow_a_build_ends_with_exit_3_and_says_what_to_install(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "tensorflow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no TensorFlow here')")
    done = pipeline(
        "build", ROOT / "configs" / "keras_digits.yaml", "--repository", tmp_path / "r", "--work-dir", tmp_path / "w",
        env={"PYTHONPATH": f"{broken.parent}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 3, done.stdout
    assert "no TensorFlow here" in done.stdout
    assert "pip install 'model-repository-pipeline[tensorflow]'" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "r").exists()
