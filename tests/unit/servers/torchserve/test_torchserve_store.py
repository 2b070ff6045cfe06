"""What TorchServe is given: settings it reads, and the same bytes for the same model."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import yaml

from pipeline.base.values import Signature, TensorSpec
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.schema.torchserve import TorchServe
from pipeline.servers.torchserve import store as torchserve_store


def _laid_out(folder: Path, names: list[str], created: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"createdOn": created, "model": {"modelName": "m"}}))
    return folder


def test_order_times_and_modes_of_the_files_do_not_reach_the_archive(tmp_path: Path) -> None:
    one = _laid_out(tmp_path / "one", ["b.py", "a.pt", "sub/c.json"], "21/11/2026 10:00:00")
    two = _laid_out(tmp_path / "two", ["sub/c.json", "a.pt", "b.py"], "22/11/2026 11:00:00")
    os.utime(two / "a.pt", (0, 2**30))
    (two / "b.py").chmod(0o600)
    for folder in (one, two):
        torchserve_store._zip(folder, folder.with_suffix(".mar"))
    assert one.with_suffix(".mar").read_bytes() == two.with_suffix(".mar").read_bytes()
    with zipfile.ZipFile(one.with_suffix(".mar")) as made:
        assert made.namelist() == ["MAR-INF/MANIFEST.json", "a.pt", "b.py", "sub/c.json"]
        assert json.loads(made.read("MAR-INF/MANIFEST.json"))["createdOn"] == "01/01/1980 00:00:00"
        assert {info.date_time for info in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_model_config_holds_torchserve_s_keys_and_the_handler_s() -> None:
    image = Preprocessing(
        formats=("png",), color="rgb", resize=(4, 6), crop=None, interpolation="bilinear", scale=255.0,
        mean=(0.5, 0.25, 0.0), std=(1.0,), max_pixels=9, dtype="float32", layout="NCHW",
    )  # fmt: skip
    scores = Postprocessing(activation="softmax", labels=("a", "b"), top_k=2, threshold=0.1)
    signature = Signature(
        inputs=(TensorSpec(name="on", dtype="float32", shape=("N", 3, 4, 6)),),  # `on` is true in YAML 1.1
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)),),
        batch="N",
        image=image,
    )
    text = torchserve_store.model_config(
        signature, TorchServe(batch_size=4, max_batch_delay_ms=7, workers=2, response_timeout_s=30),
        startup_timeout_s=60, scores=("y", scores),
    )  # fmt: skip
    found = yaml.safe_load(text)
    handler = found.pop("handler")
    assert found == {
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 4,
        "maxBatchDelay": 7,
        "responseTimeout": 30,
        "startupTimeout": 60,
    }
    assert handler["inputs"] == [{"name": "on", "dtype": "float32", "shape": ["N", 3, 4, 6]}]
    assert (handler["outputs"], handler["batched"], handler["scores"]) == ([{"name": "y"}], True, "y")
    assert Preprocessing.from_json(json.dumps(handler["preprocess"])) == image
    assert handler["postprocess"] == {"activation": "softmax", "labels": [], "top_k": 2, "threshold": 0.1}


def test_properties_bind_loopback_only_and_name_the_archive() -> None:
    found = dict(
        line.split("=", 1) for line in torchserve_store.properties("digits").splitlines() if not line.startswith("#")
    )
    addresses = {key: value for key, value in found.items() if key.endswith("_address")}
    assert len(addresses) == 5
    assert all("127.0.0.1" in value for value in addresses.values())
    assert found["load_models"] == "digits.mar"
    assert found["model_store"] == "model_store"
    assert found["metrics_mode"] == "prometheus"
    assert found["ts_open_inference_protocol"] == found["disable_token_authorization"] == "true"
