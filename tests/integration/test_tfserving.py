"""A SavedModel from the YAML to a TF-Serving tree for a Triton without TensorFlow, and clients of TF-Serving's APIs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import SmokeError, StageError
from pipeline.base.values import RunningServer
from pipeline.cli import commands
from pipeline.formats.saved_model.tfserving_messages import parse_models_config
from pipeline.servers.tfserving import client
from pipeline.servers.tfserving import deployment as deploying
from pipeline.servers.tfserving import server as tfserving
from pipeline.servers.tfserving.checks import metadata
from tests.integration.conftest import ROOT, Built, run
from tests.integration.test_tensorflow import ONE, SERVING_API, Made, made

__all__ = ["made"]  # a fixture

YAML = """\
name: net
source: {saved_model: {directory: one_saved}}
inputs: {x: {shape: [N, 4]}}
outputs: {scores: {shape: [N, 3], labels: [a, b, c]}}
samples: {from: {arrays: x.npy}, count: 6}
variants:
  sm: {format: saved_model}
  onnx: {format: onnx}
  onnx_fp16: {from: onnx, precision: fp16}
triton: {target: "25.03", max_batch_size: 4}
tfserving: {from: sm}
"""


@pytest.fixture(scope="module")
def newer(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("newer")
    (folder / "one_saved").symlink_to(made.folder / "one_saved")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    (folder / "net.yaml").write_text(YAML)
    return run(folder / "net.yaml", folder)


def test_a_newer_triton_serves_the_onnx_files_and_tf_serving_the_saved_model(newer: Built) -> None:
    assert newer.exit_code == 0, newer.output
    rows = {row["name"]: row for row in newer.report["variants"]}
    assert {name: row["server"] for name, row in rows.items()} == {
        "net_sm": "tfserving", "net_onnx": "triton", "net_onnx_fp16": "triton", "net.tfserving": "tfserving",
    }  # fmt: skip
    assert (rows["net_sm"]["version"], rows["net.tfserving"]["version"]) == (None, 1)
    assert all(row["parity"]["passed"] for row in rows.values())
    assert sorted(path.name for path in newer.repository.iterdir()) == ["net_onnx", "net_onnx_fp16"]
    checks = {check["name"]: check for check in rows["net.tfserving"]["smoke"]["checks"]}
    assert set(checks) == {"manifest", "models_config", "signature", "metadata", "predict_request"}
    assert "at batch 1, 2, 4" in checks["signature"]["detail"]
    assert {check["outcome"] for check in checks.values()} == {"passed"}
    assert any(note.startswith("the server was not run") for note in rows["net.tfserving"]["notes"])
    assert any("scores is its output_0" in note for note in rows["net_sm"]["notes"])


def test_its_tree_is_what_tf_serving_reads(newer: Built) -> None:
    tree = newer.folder / "repository.tfserving"
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert files >= {"net/1/saved_model.pb", "net/1/variables/variables.index", "models.config", "serve.sh"}
    listed = parse_models_config((tree / "models.config").read_text(), "models.config")
    assert listed == {"net": "/models/net"}


def test_the_metadata_command_prints_what_the_report_has(newer: Built, capsys: pytest.CaptureFixture[str]) -> None:
    commands.metadata(newer.folder / "repository.tfserving" / "net")
    printed = json.loads(capsys.readouterr().out)
    assert printed["model_spec"] == {"name": "net", "signature_name": "", "version": "1"}
    shown = printed["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert (set(shown["inputs"]), set(shown["outputs"])) == ({"x"}, {"scores"})
    (kept,) = (newer.work_dir / "runs").rglob("net.tfserving.metadata.json")
    assert json.loads(kept.read_text()) == printed


def test_a_damaged_tree_is_found(newer: Built, tmp_path: Path) -> None:
    copy = newer.copy(tmp_path / "copy")
    data = copy.folder / "repository.tfserving/net/1/variables/variables.data-00000-of-00001"
    weights = bytearray(data.read_bytes())
    weights[10] ^= 0x40
    data.write_bytes(weights)
    config = copy.folder / "repository.tfserving/models.config"
    config.write_text(config.read_text().replace("base_path", "base_pth"))
    done = run(copy.config, copy.folder, ("--variant", "sm"), command="smoke")
    assert done.exit_code == 5, done.output
    checks = {check["name"]: check for check in done.variant("net.tfserving")["smoke"]["checks"]}
    assert "no longer matches its manifest" in checks["manifest"]["detail"]
    assert 'no field named "base_pth"' in checks["models_config"]["detail"]
    assert checks["signature"]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("truncated", "DecodeError"),
        ("lost", "FileNotFoundError"),
        ("another", "no signature serving_default: the SavedModel has first, second"),
    ],
)
def test_a_tree_without_a_readable_model_is_found(
    newer: Built, made: Made, tmp_path: Path, damage: str, found: str
) -> None:
    copy = newer.copy(tmp_path / "copy")
    file = copy.folder / "repository.tfserving/net/1/saved_model.pb"
    content = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[:999])
    if damage == "another":
        file.write_bytes((made.folder / "signed" / "saved_model.pb").read_bytes())
    done = run(copy.config, copy.folder, ("--variant", "sm"), command="smoke")
    assert done.exit_code == 5, done.output
    checks = {check["name"]: check for check in done.variant("net.tfserving")["smoke"]["checks"]}
    passed = {name for name, check in checks.items() if check["outcome"] == "passed"}
    assert passed == {"models_config"}
    assert found in checks["metadata"]["detail"]
    assert "no metadata to make a request of" in checks["predict_request"]["detail"]


@pytest.mark.parametrize(
    ("name", "what"), [("cut", "not a SavedModel that can be served"), ("unsigned", "the SavedModel has no signatures")]
)
def test_what_cannot_be_served_has_no_metadata(made: Made, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/saved_model.pb").write_bytes((made.folder / "one_saved/saved_model.pb").read_bytes()[:999])
    (tmp_path / "unsigned").symlink_to(made.folder / "unsigned")
    with pytest.raises(StageError, match=what) as caught:
        commands.metadata(tmp_path / name)
    assert (caught.value.exit_code, caught.value.where) == (4, str(tmp_path / name))


def test_a_saved_model_without_signatures_ends_the_build_with_its_own_path(made: Made, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 4), np.float32))
    (tmp_path / "one_saved").symlink_to(made.folder / "unsigned")
    (tmp_path / "net.yaml").write_text(YAML)
    done = run(tmp_path / "net.yaml", tmp_path)
    assert done.exit_code == 4, done.output
    assert "the SavedModel has no signatures" in done.output
    assert f"where: {tmp_path / 'one_saved'}\n" in done.output
    assert not done.repository.exists()
    assert not (tmp_path / "repository.tfserving").exists()


def test_the_script_serves_the_folder_it_lies_in(newer: Built, tmp_path: Path) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    docker.chmod(0o755)
    tree = newer.folder / "repository.tfserving"
    done = subprocess.run(
        ["sh", "-c", f"{deploying.complete(tree)} --enable_batching"],
        env={"PATH": f"{docker.parent}:/usr/bin:/bin"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert f"--volume={tree}:/models:ro" in words
    assert words[-4:] == [
        "tensorflow/serving:2.19.1",
        "--model_config_file=/models/models.config",
        "--model_config_file_poll_wait_seconds=60",  # a model that a later build adds is served without a restart
        "--enable_batching",
    ]


# ---- with a server: a shim of Docker that speaks TF-Serving's protocols -------------------------------------------


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docker") / "calls"


@pytest.fixture(scope="module")
def shim(calls: Path) -> dict[str, str]:
    """The environment in which ``docker`` is the shim."""
    docker = calls.with_name("docker")
    script = ROOT / "tests" / "models" / "tfserving_shim.py"
    docker.write_text(f'#!/bin/sh\nexec env PYTHONPATH={SERVING_API} {sys.executable} {script} "$@"\n')
    docker.chmod(0o755)
    return {"PATH": f"{docker.parent}:{os.environ['PATH']}", "SHIM_CALLS": str(calls)}


@pytest.fixture(scope="module")
def running(newer: Built, calls: Path, shim: dict[str, str]) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shim.items():
            patch.setenv(name, value)
        for name in ("http_proxy", "grpc_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")  # nobody there
        tree = newer.folder / "repository.tfserving"
        with tfserving.launch(tree, "net", log_path=calls.with_name("log"), start_timeout_s=120) as server:
            yield server


@pytest.fixture(scope="module")
def shown(newer: Built) -> dict[str, Any]:
    return metadata(newer.folder / "repository.tfserving/net/1", "net", 1)


@pytest.mark.parametrize("ask", [client.rest, client.grpc])
def test_both_protocols_give_the_models_answers(
    made: Made, running: RunningServer, shown: dict[str, Any], ask: Any
) -> None:
    answer = ask(running, "net", ONE, shown, {"x": made.answers["x"]})
    assert answer["scores"].dtype == np.float32
    np.testing.assert_allclose(answer["scores"], made.answers["probabilities"], atol=1e-6)


def test_the_servers_metadata_is_held_against_the_printed(running: RunningServer, shown: dict[str, Any]) -> None:
    assert client.metadata(running, "net", shown).endswith("/v1/models/net/metadata")
    other = json.loads(json.dumps(shown).replace('"-1"', '"7"'))
    with pytest.raises(SmokeError, match="serving_default is"):
        client.metadata(running, "net", other)


def test_refusals_are_told(made: Made, running: RunningServer, shown: dict[str, Any]) -> None:
    inputs = {"x": made.answers["x"]}
    with pytest.raises(SmokeError, match="HTTP 404") as rest:
        client.rest(running, "other", ONE, shown, inputs)
    assert "Servable not found" in rest.value.found
    wrong = {**shown, "model_spec": {**shown["model_spec"], "name": "other"}}
    with pytest.raises(SmokeError, match="Predict: NOT_FOUND"):
        client.grpc(running, "other", ONE, wrong, inputs)


def test_docker_was_asked_in_this_order(running: RunningServer, calls: Path) -> None:
    rows = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [row[0] for row in rows] == ["version", "image", "run"]


@pytest.mark.parametrize(("offset", "exit_code"), [("0", 0), ("0.25", 5)])
def test_a_build_proves_the_server_s_own_answers(
    newer: Built, shim: dict[str, str], tmp_path: Path, offset: str, exit_code: int
) -> None:
    copy = newer.copy(tmp_path / "copy")
    options = ("--variant", "sm", "--set", "serve.engine=container")
    env = {**shim, "SHIM_CALLS": str(tmp_path / "calls"), "SHIM_OFFSET": offset}
    done = run(copy.config, copy.folder, options, command="smoke", env=env)
    assert done.exit_code == exit_code, done.output
    row = done.variant("net.tfserving")
    checks = {(check["name"], check["protocol"]): check for check in row["smoke"]["checks"]}
    asked = {("metadata", "http"), ("golden", "http"), ("golden", "grpc")}
    assert asked <= set(checks)
    failed = {name for name, check in checks.items() if check["outcome"] != "passed"}
    assert failed == (set() if exit_code == 0 else {("golden", "http"), ("golden", "grpc")})
    if exit_code == 0:
        assert {checks["golden", protocol]["detail"] for protocol in ("http", "grpc")} == {"6 samples"}
        assert not any(note.startswith("the server was not run") for note in row["notes"])
    else:
        assert all("sample 0: " in checks[name]["detail"] for name in failed)
