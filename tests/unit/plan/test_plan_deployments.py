"""What is planned beside Triton: TorchServe, programs, TF-Serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.machine import environment
from pipeline.schema.torchserve import TorchServe
from tests.unit.plan.planned import YAML, deployment, plan


def test_torchserve_is_made_from_the_first_torchscript_variant_or_the_one_named(tmp_path: Path) -> None:
    made = deployment(plan(tmp_path, "torchserve={}"), "torchserve")
    assert made is not None
    assert (made.identifier, made.key, made.model, made.variant.key) == ("m.torchserve", "m.torchserve", "m", "ts")
    assert isinstance(made.settings, TorchServe)
    assert (made.settings.batch_size, made.settings.max_batch_delay_ms, made.settings.workers) == (8, 10, 1)
    assert (made.format, made.precision, made.server) == ("mar", "fp32", "torchserve")
    text = YAML.replace(
        "triton:\n  target", "  ts2: {from: ts}\ntorchserve: {from: ts2, batch_size: 3}\ntriton:\n  target"
    )
    named = plan(tmp_path, text=text)
    archive = deployment(named, "torchserve")
    assert archive is not None
    assert (archive.variant.key, archive.max_batch_size) == ("ts2", 3)
    assert [row.identifier for row in named.rows][-1] == "m.torchserve"


def test_torchserve_is_left_out_where_its_variant_is(tmp_path: Path) -> None:
    assert deployment(plan(tmp_path, "torchserve={}", keys=("onnx",)), "torchserve") is None
    assert deployment(plan(tmp_path, "torchserve={}", keys=("ts",)), "torchserve") is not None
    assert plan(tmp_path).deployments == ()


def test_a_missing_java_is_said_for_the_proof_and_does_not_keep_the_archive_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment.probe(tmp_path)
    monkeypatch.setattr(environment, "probe", lambda _: replace(found, java=None))
    made = plan(tmp_path, "torchserve={}")
    (archive,) = made.deployments
    assert archive.lacking_to_make == ()
    assert made.missing_for_deployments == ("m.torchserve: Java: none; apt-get install openjdk-17-jre-headless",)


PROGRAM = """\
name: m
source: {model: {callable: "net.py:make"}}
inputs:
  x: {shape: [N, 1, 8, 8]}
outputs:
  y: {shape: [N, 10], labels: digits}
samples: {from: {dataset: digits}}
preprocess: {}
postprocess: {}
variants:
  cpp: {from: ts, format: libtorch}
  ts: {format: torchscript}
"""


def test_a_program_is_made_of_its_parents_file_and_serves_itself(tmp_path: Path) -> None:
    cpp, ts = plan(tmp_path, text=PROGRAM).variants
    assert (cpp.format, cpp.kind, cpp.server) == ("libtorch", "torchscript", "none")
    assert (ts.format, ts.kind, ts.server) == ("torchscript", "torchscript", "triton")
    assert cpp.export == ts.export
    assert cpp.parity.key == ts.parity.key  # judged once
    assert cpp.how == "from ts → C++ program"


def test_an_ensemble_asks_no_program(tmp_path: Path) -> None:
    made = plan(tmp_path, text=PROGRAM)
    ensemble = deployment(made, "triton")
    assert ensemble is not None
    assert ensemble.variant.key == "ts"


KERAS = YAML.replace('{model: {callable: "net.py:Net"}}', "{keras: {file: x.npy}}").replace(
    "  ts: {format: torchscript", "  sm: {format: saved_model"
)


def test_a_saved_model_is_tritons_up_to_25_02_and_tf_servings_after_that(tmp_path: Path) -> None:
    made = plan(tmp_path, text=KERAS)
    assert [(item.key, item.kind, item.server, item.options) for item in made.variants][2] == (
        "sm", "saved_model", "triton", {},
    )  # fmt: skip
    assert deployment(made, "tfserving") is None
    newer = plan(tmp_path, "tfserving={}", "triton.target='25.03'", text=KERAS)
    assert [item.server for item in newer.variants] == ["triton", "triton", "tfserving"]
    tree = deployment(newer, "tfserving")
    assert tree is not None
    assert newer.rows == (*newer.variants, tree)
    assert (tree.key, tree.server, tree.precision) == ("m.tfserving", "tfserving", "fp32")
    assert tree.root == tmp_path / "repo.tfserving"
    assert deployment(plan(tmp_path, "tfserving={}", text=KERAS, keys=("onnx",)), "tfserving") is None
    assert deployment(plan(tmp_path, "tfserving={}", text=KERAS, keys=("sm",)), "tfserving") is not None


def test_tensorflows_models_go_through_tf2onnx(tmp_path: Path) -> None:
    onnx, _, saved = plan(tmp_path, text=KERAS).variants
    assert onnx.options == {"exporter": "tf2onnx", "opset": 18, "simplify": True, "max_ir_version": 10}
    assert "tf2onnx" in onnx.export.tools
    assert "tf2onnx" not in saved.export.tools
    assert onnx.export.module == "pipeline.formats.tf2onnx"
    assert saved.export.module == "pipeline.formats.saved_model.export"
