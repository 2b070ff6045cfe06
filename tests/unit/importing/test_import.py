"""What comes out of an archive: the YAML, the files beside it, and the lines that say what was left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from pipeline.base.errors import ConfigError, MissingError, PipelineError
from pipeline.config import load
from pipeline.importing import Imported, import_mar
from tests.unit.lint.lint_repository import CODE, onnx_bytes, torchscript_bytes

from .mar import MODEL, ONE_INPUT, mar

IMAGES = {"handler": "image_classifier"}
NAMES = {str(index): [f"n{index}", name] for index, name in enumerate(("cat", "dog", "owl"))}


def imported(path: Path, **options: object) -> Imported:
    return import_mar(path, path.parent / "out", **options)  # type: ignore[arg-type]


def lines(done: Imported, outcome: str) -> list[str]:
    return [f"{line.what}: {line.detail}" for line in done.lines if line.outcome == outcome]


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.savez(tmp_path / "samples.npz", x=np.zeros((4, 4), np.float32))
    return tmp_path / "samples.npz"


def test_an_image_classifier_loads_as_it_is(tmp_path: Path, samples: Path) -> None:
    files = {
        "index_to_name.json": json.dumps(NAMES),
        "model-config.yaml": "minWorkers: 2\nbatchSize: 8\nmaxBatchDelay: 20\nresponseTimeout: 120\n",
        "requirements.txt": "pandas\n",
        "vocabulary.txt": "a\n",
    }
    keys = {"configFile": "model-config.yaml", "requirementsFile": "requirements.txt"}
    done = imported(mar(tmp_path / "tiny.mar", files, **IMAGES, **keys), samples=samples)
    assert done.problems == ()
    config = load.load(done.config).config
    assert config.source.torchscript is not None
    assert (done.config.parent / config.source.torchscript.file).read_bytes() == MODEL
    assert config.inputs["x"].shape == ("N", 3, 224, 224)
    assert config.outputs["output"].shape == ("N", 3)
    assert (done.config.parent / "labels.txt").read_text() == "cat\ndog\nowl\n"
    assert config.preprocess is not None
    assert (config.preprocess.resize, config.preprocess.crop) == (256, (224, 224))
    assert config.preprocess.mean == (0.485, 0.456, 0.406)
    assert config.preprocess.std == (0.229, 0.224, 0.225)
    assert config.postprocess is not None
    assert (config.postprocess.activation, config.postprocess.top_k) == ("softmax", 5)
    assert config.triton.max_batch_size == 8
    assert config.triton.model_config_fields == {
        "dynamic_batching": {"max_queue_delay_microseconds": 20_000},
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
    }
    assert set(config.variants) == {"torchscript", "onnx"}
    assert lines(done, "not carried") == [
        "serving: responseTimeout: nothing in the YAML says this",
        "version: 1.0: the repository counts its own versions",
    ]
    assert lines(done, "kept") == [
        "archive/requirements.txt: nothing of it was installed",
        "archive/vocabulary.txt: an extra file",
    ]
    assert lines(done, "to do") == []


def test_the_handlers_settings_are_those_of_torchserve() -> None:
    """Where TorchServe is installed, its source is the yardstick; it is parsed, not imported."""
    import ast
    import importlib.util

    spec = importlib.util.find_spec("ts")
    assert spec is not None, "pip install torchserve==0.12.0"
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "torch_handler" / "image_classifier.py").read_text()
    calls = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    assert {
        "transforms.Resize(256)",
        "transforms.CenterCrop(224)",
        "transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "F.softmax(data, dim=1)",
    } <= calls
    assert "topk = 5" in source


def test_equal_archives_give_equal_bytes(tmp_path: Path) -> None:
    path = mar(tmp_path / "tiny.mar", {"index_to_name.json": json.dumps(NAMES)}, **IMAGES)
    first, second = (import_mar(path, tmp_path / name).config for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_without_samples_the_yaml_says_what_is_missing(tmp_path: Path) -> None:
    done = imported(mar(tmp_path / "tiny.mar"), inputs=["x:float32:N,4"], outputs=["y:float32:N,4"])
    (problem,) = done.problems
    assert problem.key == "samples.from"
    assert done.sample_key == "samples.from.arrays"
    assert "# samples: {from: {arrays: samples.npz}}" in done.config.read_text()
    np.savez(done.config.parent / "given.npz", x=np.zeros((4, 4), np.float32))
    assert load.load(done.config, ["samples.from.arrays=given.npz"]).config.outputs["y"].shape == ("N", 4)


def test_unknown_tensors_are_named(tmp_path: Path, samples: Path) -> None:
    done = imported(mar(tmp_path / "tiny.mar"), samples=samples)
    assert [line.split(":")[0] for line in lines(done, "to do")] == ["inputs", "outputs"]
    assert "give --input NAME:DTYPE:SHAPE" in lines(done, "to do")[0]
    assert "# x: {dtype: …, shape: [N, …]}" in done.config.read_text()
    assert {problem.key for problem in done.problems} == {"inputs", "outputs"}


def test_an_image_classifier_without_labels_needs_its_output(tmp_path: Path, samples: Path) -> None:
    done = imported(mar(tmp_path / "tiny.mar", **IMAGES), samples=samples)
    assert {problem.key for problem in done.problems} == {"outputs"}
    again = import_mar(tmp_path / "tiny.mar", tmp_path / "more", outputs=["output:float32:N,7"], samples=samples)
    assert again.problems == ()
    assert load.load(again.config).config.preprocess is not None


def test_a_model_of_other_images_keeps_its_shape_and_loses_the_handler(tmp_path: Path, samples: Path) -> None:
    path = mar(tmp_path / "tiny.mar", **IMAGES)
    done = imported(path, inputs=["x:float32:N,1,28,28"], outputs=["y:float32:N,3"], samples=samples)
    assert load.load(done.config).config.preprocess is None
    assert "handler: image_classifier: the model takes no 3x224x224 images" in lines(done, "not carried")


def test_an_onnx_file_tells_its_tensors(tmp_path: Path, samples: Path) -> None:
    model = onnx_bytes(("batch_size", 4), out_shape=("batch_size", 4))
    done = imported(mar(tmp_path / "t.mar", {"net.onnx": model}, serializedFile="net.onnx"), samples=samples)
    assert done.problems == ()
    config = load.load(done.config).config
    assert config.inputs["x"].shape == config.outputs["y"].shape == ("N", 4)
    assert set(config.variants) == {"onnx"}


def test_no_batch_no_batch_settings(tmp_path: Path, samples: Path) -> None:
    files = {"net.onnx": onnx_bytes((1, 4)), "c.yaml": "batchSize: 4\nmaxBatchDelay: 5\n"}
    done = imported(mar(tmp_path / "t.mar", files, serializedFile="net.onnx", configFile="c.yaml"), samples=samples)
    assert done.problems == ()
    assert lines(done, "not carried")[:2] == [
        "serving: batchSize 4: the model has no batch dimension",
        "serving: maxBatchDelay 5: the model has no batch dimension",
    ]


def test_types_that_the_pipeline_has_not_are_to_be_given(tmp_path: Path, samples: Path) -> None:
    model = onnx_bytes(("N", 4), dtype=TensorProto.BFLOAT16)
    done = imported(mar(tmp_path / "t.mar", {"net.onnx": model}, serializedFile="net.onnx"), samples=samples)
    assert {problem.key for problem in done.problems} == {"inputs", "outputs"}


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ({"0": "a", "2": "b"}, "keys are not 0 to 1"),
        ({"1": "a", "2": "b"}, "keys are not 0 to 1"),
        ({"0": "a", "01": "b"}, "keys are not 0 to 1"),
        ('{"0": "a", "0": "b"}', "each key once"),
        (["a", "b"], "each key once"),
        ("not json", "each key once"),
        ({"0": "a", "1": "b\nc"}, "no text of one line"),
        ({"0": "a", "1": 7}, "no text of one line"),
        ({"0": "a", "1": "b"}, "2 labels for a last dimension of 3"),
    ],
)
def test_labels_that_are_not_carried(tmp_path: Path, samples: Path, mapping: object, why: str) -> None:
    text = mapping if isinstance(mapping, str) else json.dumps(mapping)
    path = mar(tmp_path / "t.mar", {"index_to_name.json": text})
    done = imported(path, inputs=["x:float32:N,4"], outputs=["y:float32:N,3"], samples=samples)
    assert done.problems == ()
    assert why in next(line for line in lines(done, "not carried") if line.startswith("labels"))
    assert not (done.config.parent / "labels.txt").exists()


def test_labels_are_put_in_the_order_of_their_indices(tmp_path: Path) -> None:
    mapping = {str(index): f"class {index}" for index in sorted(range(12), key=str)}
    done = imported(mar(tmp_path / "t.mar", {"index_to_name.json": json.dumps(mapping)}, **IMAGES))
    assert (done.config.parent / "labels.txt").read_text().split("\n")[2] == "class 2"
    listed = {"object_type_names": ["a", "b"]}
    done = import_mar(mar(tmp_path / "u.mar", {"index_to_name.json": json.dumps(listed)}, **IMAGES), tmp_path / "u")
    assert (done.config.parent / "labels.txt").read_text() == "a\nb\n"


@pytest.mark.parametrize(
    ("handler", "files", "found"),
    [
        ("handler.py:handle", {"handler.py": "raise SystemExit(1)"}, "archive/handler.py was not run"),
        ("handler", {"handler.py": "raise SystemExit(1)"}, "archive/handler.py was not run"),
        ("object_detector", {}, "object_detector: what TorchServe's own handler does"),
    ],
)
def test_handlers_that_are_not_carried(tmp_path: Path, handler: str, files: dict[str, str], found: str) -> None:
    done = imported(mar(tmp_path / "t.mar", files, handler=handler))
    assert any(found in line for line in lines(done, "not carried"))
    for name, text in files.items():
        assert (done.config.parent / "archive" / name).read_text() == text


def test_the_models_name_becomes_one_that_the_yaml_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = import_mar(mar(tmp_path / "t.mar", modelName="../../résumé v1.2"), None)
    assert done.config == Path("r_sum__v1_2/r_sum__v1_2.yaml")
    assert import_mar(mar(tmp_path / "u.mar", modelName=None), None).config == Path("u/u.yaml")


def test_nothing_existing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mar(tmp_path / "tiny.mar")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for out in (None, Path("file"), Path("link"), tmp_path / "tiny"):
        with pytest.raises(ConfigError, match="exists already"):
            import_mar(path, out)
    with pytest.raises(ConfigError, match="no such folder"):
        import_mar(path, tmp_path / "no" / "where")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "link", "tiny", "tiny.mar"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"serializedFile": "../../etc/passwd"}, "names serializedFile '../../etc/passwd'"),
        ({"serializedFile": "other.pt"}, "which the archive does not hold"),
        ({"modelFile": "net.py"}, "which the archive does not hold"),
        ({"serializedFile": None}, "names no serialized file"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, model: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match="import-mar") as caught:
        imported(mar(tmp_path / "t.mar", **model))
    assert why in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"model": []}', "{" * 100_000, '{"model": {"a": 1, "a": 2}}', "\xff"])
def test_manifests_that_are_none(tmp_path: Path, text: str) -> None:
    from .mar import MANIFEST, zipped

    path = zipped(tmp_path / "t.mar", [("model.pt", MODEL), (MANIFEST, text.encode("latin-1"))])
    with pytest.raises(ConfigError, match="is no JSON with a `model`"):
        imported(path)
    with pytest.raises(ConfigError, match="it has no MAR-INF/MANIFEST"):
        imported(zipped(tmp_path / "u.mar", [("model.pt", MODEL)]))


@pytest.mark.parametrize("text", ["- a\n", "a: [", "!!python/object/apply:os.system [id]", "[" * 500])
def test_model_configs_that_are_none(tmp_path: Path, text: str) -> None:
    done = imported(mar(tmp_path / "t.mar", {"c.yaml": text}, configFile="c.yaml"))
    assert "serving: c.yaml: not a YAML mapping" in lines(done, "not carried")


def test_a_model_config_runs_nothing_and_sees_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", "3")
    text = "minWorkers: ${env:WORKERS}\nbatchSize: !!python/object/apply:os.getpid []\nmaxWorkers: true\n"
    done = imported(mar(tmp_path / "t.mar", {"c.yaml": text}, configFile="c.yaml"))
    assert [line for line in lines(done, "carried") if line.startswith("serving")] == []
    left = [line.split(": ")[1] for line in lines(done, "not carried") if line.startswith("serving")]
    assert left == ["minWorkers", "batchSize", "maxWorkers"]


def test_names_beyond_the_basic_plane_and_odd_ones_load_again(tmp_path: Path) -> None:
    """What JSON writes for U+1F600, a pair of surrogates, is no YAML."""
    name = "模型😀: é#'\".pt"
    folder = tmp_path / "s\x85\u2028\x7f\ufeff\x1b\t😀"
    folder.mkdir()
    np.savez(folder / "s.npz", x=np.zeros((4, 4), np.float32))
    tensors = {"inputs": ["x:float32:N,4"], "outputs": ["y:float32:N,4"]}
    path = mar(tmp_path / "t.mar", {name: MODEL}, serializedFile=name)
    done = imported(path, samples=folder / "s.npz", **tensors)
    assert done.problems == ()
    config = load.load(done.config).config
    assert config.source.torchscript is not None
    assert config.source.torchscript.file == f"archive/{name}"
    assert config.samples.from_.arrays == str(folder / "s.npz")


def test_samples_whose_name_is_no_text_are_refused(tmp_path: Path) -> None:
    samples = tmp_path / "\udcff.npz"
    samples.touch()
    with pytest.raises(ConfigError, match=r"cannot have[\s\S]*no text in UTF-8"):
        imported(mar(tmp_path / "t.mar"), samples=samples)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "error"), [("x" * 256, ConfigError), ("/proc/x", MissingError), (f"{'y' * 256}/x", ConfigError)]
)
def test_places_where_no_folder_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, error: type[PipelineError]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match="import-mar: no folder can be made there") as caught:
        import_mar(mar(tmp_path / "t.mar"), Path(out))
    assert caught.value.where in (out, "/proc")
    assert caught.value.hint == "name another with --out"
    assert [item.name for item in tmp_path.iterdir()] == ["t.mar"]


def test_an_archive_and_samples_with_names_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the archive"):
        imported(tmp_path / ("x" * 256))
    with pytest.raises(ConfigError, match="no such samples"):
        imported(mar(tmp_path / "t.mar"), samples=Path("x" * 256))


def test_a_name_cannot_reach_into_the_environment(tmp_path: Path) -> None:
    path = mar(tmp_path / "t.mar", {"${env:HOME}.pt": MODEL}, serializedFile="${env:HOME}.pt")
    with pytest.raises(ConfigError, match="a name that a configuration cannot have"):
        imported(path)


def test_an_archives_name_cannot_leave_its_comment(tmp_path: Path, samples: Path) -> None:
    path = mar(tmp_path / "x\nsource: {}\n.mar")
    done = imported(path, inputs=["x:float32:N,4"], outputs=["y:float32:N,4"], samples=samples)
    assert done.problems == ()


def test_arguments_that_are_no_tensors_are_told(tmp_path: Path) -> None:
    model = torchscript_bytes(ONE_INPUT.replace("x: Tensor)", "x: Tensor,\n    mask: Optional[Tensor]=None)"))
    done = imported(mar(tmp_path / "t.mar", {"model.pt": model}))
    assert "model: arguments that are no tensors are not fed: mask: Optional[Tensor]" in lines(done, "carried")
    assert "# x: {dtype" in done.config.read_text()


def test_two_results_are_two_outputs(tmp_path: Path) -> None:
    model = torchscript_bytes(CODE.replace("-> Tensor", "-> Tuple[Tensor, List[Tensor]]"))
    text = imported(mar(tmp_path / "t.mar", {"model.pt": model})).config.read_text()
    for name in ("ids", "mask", "output_0", "output_1"):
        assert f"# {name}: {{dtype" in text
    assert "output_2" not in text


def test_bad_arguments_come_first(tmp_path: Path) -> None:
    path = mar(tmp_path / "t.mar")
    with pytest.raises(ConfigError, match="no such samples"):
        imported(path, samples=tmp_path / "none.npz")
    with pytest.raises(ConfigError, match="--input does not fit the model"):
        imported(path, inputs=["a:float32:N", "b:float32:N"])
    assert not (tmp_path / "out").exists()
