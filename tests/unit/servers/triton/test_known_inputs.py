from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.servers.triton.known_inputs import known_input
from pipeline.servers.triton.probe import InputSpec

SPECS = [InputSpec(name="x", datatype="FP32", shape=(1, 3))]
ROW = np.array([[1, 2, 3]], np.float32)


def _config(file: str = "row") -> dict:
    sample = {"inputs": {"x": {"data_type": "TYPE_FP32", "dims": ["3"], "input_data_file": file}}}
    return {"max_batch_size": 8, "model_warmup": [sample]}


def _ask(repository: Path, config: dict, golden: dict | None = None, specs: list[InputSpec] = SPECS):
    return known_input(repository, "m", "1", specs, config, lambda model, version: golden)


def test_the_warmup_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "m" / "warmup" / "row").write_bytes(ROW.tobytes())
    found = _ask(tmp_path, _config(), {"x": ROW * 2})
    assert (found.origin, found.good) == ("warmup data", True)
    assert found.inputs[0].shape == (1, 3)
    assert found.data == [ROW.tobytes()]


def test_a_golden_sample_where_there_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"hush")
    for name in ("absent", "../../secret", ""):
        found = _ask(tmp_path, _config(name), {"x": ROW})
        assert (found.origin, found.data) == ("golden sample", [ROW.tobytes()])
    dynamic = [InputSpec(name="x", datatype="FP32", shape=(1, 1))]
    assert _ask(tmp_path, {}, {"x": ROW}, dynamic).inputs[0].shape == (1, 3)
    reshaped = [InputSpec(name="x", datatype="FP32", shape=(1, 3, 1))]
    assert _ask(tmp_path, {}, {"x": ROW}, reshaped).inputs[0].shape == (1, 3, 1)


def test_zeros_where_nothing_fits(tmp_path: Path) -> None:
    for golden in (None, {"y": ROW}, {"x": np.zeros((1, 5, 2), np.float32)}, {"x": ROW.astype(np.float64)}):
        found = _ask(tmp_path, {}, golden)
        assert (found.origin, found.good, found.data) == ("zeros", False, [bytes(12)])


def test_the_example_file_of_an_ensemble(tmp_path: Path) -> None:
    text = [InputSpec(name="image", datatype="BYTES", shape=(1, 1))]
    assert _ask(tmp_path, {}, {"image": ROW}, text).origin == "zeros"  # the model's own samples are no files
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "example.png").write_bytes(b"PNG!!")
    found = _ask(tmp_path, {}, None, text)
    assert (found.origin, found.data) == ("example file", [b"\x05\0\0\0PNG!!"])
    assert _ask(tmp_path, {}, None).origin == "zeros"


def test_a_golden_image_file_is_asked_for_as_it_is(tmp_path: Path) -> None:
    text = [InputSpec(name="image", datatype="BYTES", shape=(1, 1))]
    found = _ask(tmp_path, {}, {"image": np.array([[b"\x89PNG"]], np.object_)}, text)
    assert (found.origin, found.inputs, found.data) == ("golden sample", text, [b"\x04\x00\x00\x00\x89PNG"])
