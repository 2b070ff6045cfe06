"""The emitted python models in this process: one bad image fails its own request, and Pillow is found or asked for."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy import testing
from PIL import Image

from pipeline.images import postprocessing, preprocessing
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing, png
from pipeline.servers.triton.emission import PYTHON_MODELS

HOW = Preprocessing(
    formats=("png",), color="gray", resize=None, crop=None, interpolation="bilinear", scale=255.0, mean=(0.0,),
    std=(1.0,), max_pixels=100, dtype="float32", layout="NCHW",
)  # fmt: skip
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
LABELS = Postprocessing(activation="none", labels=("a", "ü"), top_k=2, threshold=0.2)


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError(SimpleNamespace):
    INTERNAL, INVALID_ARG = "internal", "invalid"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message=message, code=code)


class Response:
    def __init__(self, tensors: Any = (), error: TritonError | None = None) -> None:
        self.error = error
        self.outputs = {tensor.name: tensor.as_numpy() for tensor in tensors}


Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Loads an emitted model from a version directory, as Triton's stub does."""
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError, utils.InferenceResponse = Tensor, TritonError, Response
    utils.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    for name in ("preprocessing", "postprocessing"):  # the copies, not what another test left
        monkeypatch.delitem(sys.modules, name, raising=False)
    models = []

    def load(kind: str, settings: str, dims: list[int], vendored: tuple[str, ...] = ()) -> Any:
        version = tmp_path / "m" / "1"
        (version / "vendor").mkdir(parents=True)
        (version / "vendor" / "pillow.txt").write_text("'pillow<=9.9'\n")
        for name in vendored:
            (version / "vendor" / name).mkdir()
        (version / "settings.json").write_text(settings)
        shutil.copy(PYTHON_MODELS / kind / "model.py", version)
        shutil.copy({"preprocess": preprocessing, "postprocess": postprocessing}[kind].__file__, version)
        spec = importlib.util.spec_from_file_location("model", version / "model.py")
        assert spec is not None and spec.loader is not None  # noqa: PT018
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        tensors = {"input": [{"name": "in"}], "output": [{"name": "out", "dims": [str(size) for size in dims]}]}
        model.initialize(
            {"model_repository": str(tmp_path / "m"), "model_version": "1", "model_config": json.dumps(tensors)}
        )
        models.append(model)
        return model

    yield load
    for model in models:
        if hasattr(model, "finalize"):
            model.finalize()
    for name in ("preprocessing", "postprocessing"):
        sys.modules.pop(name, None)


def request(*files: bytes) -> dict[str, Tensor]:
    return {"in": Tensor("in", np.array([[file] for file in files], np.object_))}


def image(value: int, width: int = 3) -> bytes:
    return png(np.full((2, width, 1), value, np.uint8))


def test_requests_become_batches_of_their_own_images(load: Load) -> None:
    model = load("preprocess", HOW.to_json(), [1, 2, 3])
    first, second = model.execute([request(image(51)), request(image(102), image(255))])
    assert first.outputs["out"].shape == (1, 1, 2, 3)
    assert second.outputs["out"].dtype == np.float32
    testing.assert_allclose(second.outputs["out"][:, 0, 0, 0], [0.4, 1.0])


def test_a_bad_image_fails_its_own_request_only(load: Load) -> None:
    model = load("preprocess", HOW.to_json(), [1, 2, 3])
    bad = [b"", b"text", image(1)[:40], image(1, width=101)]
    answers = model.execute([request(image(51)), *map(request, bad), request(image(51), b"text"), request(image(51))])
    assert [answer.error is None for answer in answers] == [True, False, False, False, False, False, True]
    assert {answer.error.code for answer in answers[1:-1]} == {TritonError.INVALID_ARG}
    assert answers[1].error.message == "not a usable image: no bytes; expected an image file"
    assert "202 pixels" in answers[4].error.message or "101 x 2 pixels" in answers[4].error.message
    testing.assert_allclose(answers[-1].outputs["out"], 0.2)


def test_what_nobody_foresaw_fails_its_own_request_too(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("preprocess", HOW.to_json(), [1, 2, 3])
    real = model._code.tensor

    def tensor(data: bytes, how: Preprocessing) -> np.ndarray:
        if data == b"odd":
            raise ZeroDivisionError("by zero")
        return real(data, how)

    monkeypatch.setattr(model._code, "tensor", tensor)
    odd, good = model.execute([request(b"odd"), request(image(51))])
    assert (odd.error.message, odd.error.code) == ("ZeroDivisionError: by zero", TritonError.INTERNAL)
    assert good.error is None


def test_images_of_one_request_must_become_one_batch(load: Load) -> None:
    model = load("preprocess", HOW.to_json(), [1, 2, -1])
    mixed, alone = model.execute([request(image(1), image(1, width=4)), request(image(1, width=4))])
    assert mixed.error.code == TritonError.INVALID_ARG
    assert "different sizes" in mixed.error.message
    assert alone.outputs["out"].shape == (1, 1, 2, 4)


def test_a_configuration_s_reshape_is_undone(load: Load) -> None:
    model = load("preprocess", HOW.to_json(), [6])
    (answer,) = model.execute([request(image(51), image(51))])
    assert answer.outputs["out"].shape == (2, 6)


def test_the_published_pillow_comes_first(load: Load, tmp_path: Path) -> None:
    load("preprocess", HOW.to_json(), [1, 2, 3], vendored=(PYTHON, "cp399-x86_64"))
    assert sys.path[:2] == [str(tmp_path / "m" / "1"), str(tmp_path / "m" / "1" / "vendor" / PYTHON)]


def test_without_any_pillow_it_does_not_load_and_says_what_to_install(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> ModuleType:
        if name.startswith("PIL"):
            raise ImportError("No module named 'PIL'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(RuntimeError) as caught:
        load("preprocess", HOW.to_json(), [1, 2, 3], vendored=("cp399-x86_64",))
    assert f"none is published for {PYTHON}" in str(caught.value)
    assert str(caught.value).endswith("(No module named 'PIL'); pip install 'pillow<=9.9'")


def test_a_published_pillow_that_does_not_load_is_told_as_that(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> ModuleType:
        if name.startswith("PIL"):
            raise ImportError("libc.so.6: version `GLIBC_2.99' not found")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError) as caught:
        load("preprocess", HOW.to_json(), [1, 2, 3], vendored=(PYTHON,))
    assert f"vendor/{PYTHON} cannot be imported here (libc.so.6" in str(caught.value)
    assert "published for" not in str(caught.value)


def test_scores_become_json_text_per_row(load: Load) -> None:
    model = load("postprocess", LABELS.to_json(), [1])
    scores = np.array([[0.1, 0.9], [0.6, 0.4]], np.float32)
    (answer,) = model.execute([{"in": Tensor("in", scores)}])
    assert answer.outputs["out"].shape == (2, 1)
    texts = [json.loads(value) for value in answer.outputs["out"].reshape(-1)]
    assert texts[0] == [{"label": "ü", "probability": 0.9}]
    assert [row["label"] for row in texts[1]] == ["a", "ü"]


def test_scores_that_are_no_numbers_are_an_error_of_their_request(load: Load) -> None:
    model = load("postprocess", LABELS.to_json(), [1])
    bad, good = model.execute(
        [{"in": Tensor("in", np.array([[np.nan, 0.9]]))}, {"in": Tensor("in", np.array([[0.5, 0.5]]))}]
    )
    assert bad.error.code == TritonError.INTERNAL
    assert "NaN" in bad.error.message
    assert good.error is None
    infinite, impossible = model.execute(
        [{"in": Tensor("in", np.array([[np.inf, 0.9]]))}, {"in": Tensor("in", np.array([[-np.inf, 0.9]]))}]
    )
    assert "infinity" in infinite.error.message
    assert json.loads(impossible.outputs["out"][0, 0]) == [{"label": "ü", "probability": 0.9}]


def test_pillows_warnings_of_odd_files_do_not_fill_the_servers_log(load: Load) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    stream = io.BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(stream, "PNG", exif=exif.tobytes()[:-9])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        preprocessing.tensor(stream.getvalue(), HOW)
        assert [str(one.message) for one in told] == ["Truncated File Read"]
        (answer,) = load("preprocess", HOW.to_json(), [1, 2, 3]).execute([request(stream.getvalue())])
    assert answer.error is None
    assert len(told) == 1
