"""A repository proven without its YAML: by its manifests and golden samples, with the versions it really serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import files
from pipeline.repository.manifest import read_manifest
from pipeline.repository.versions import state_dir
from tests.integration.conftest import ROOT, Built, pipeline, run
from tests.integration.test_ensemble import YAML


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An ensemble and its members, published without a proof."""
    folder = tmp_path_factory.mktemp("standing")
    (folder / "digits.yaml").write_text(YAML)
    done = run(folder / "digits.yaml", folder, ["--no-serve"])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def copied(digits: Built, tmp_path: Path) -> Built:
    return digits.copy(tmp_path / "copy")


def smoke(done: Built, *more: str | Path) -> tuple[int, str, dict[str, Any]]:
    report = done.folder / "smoke.json"
    shown = pipeline("smoke", done.repository, *more, "--work-dir", done.folder / "elsewhere", "--report", report)
    rows = json.loads(report.read_text())["variants"] if report.is_file() else []
    return shown.returncode, shown.stdout, {row["name"]: row for row in rows}


def level(done: Built, model: str, version: int = 1) -> object:
    return (read_manifest(done.repository, model, version) or {})["proof"]


def test_a_build_without_a_proof_is_proven_later_and_makes_no_version(copied: Built) -> None:
    assert {row["proof"] for row in copied.report["variants"]} == {"none"}
    linted = json.loads(pipeline("lint", copied.repository, "--json").stdout)["findings"]
    assert {row["rule"] for row in linted} == {"version-not-proven"}
    before = files.tree_digests(copied.repository)
    status, shown, rows = smoke(copied)
    assert status == 0, shown
    assert set(rows) == {"digits", "digits_onnx", "digits_other"}
    assert {row["proof"] for row in rows.values()} == {"served"}
    after = files.tree_digests(copied.repository)
    assert {name: digest for name, digest in after.items() if "__pycache__" not in name} == before
    for name in ("digits", "digits_onnx", "digits_other", "digits_preprocess", "digits_postprocess"):
        assert level(copied, name) == "served"
    assert json.loads(pipeline("lint", copied.repository, "--json").stdout)["findings"] == []
    again = copied.again("--no-serve")
    assert {(row["version"], row["proof"]) for row in again.report["variants"]} == {(1, "served")}


def test_neither_torch_nor_the_yaml_is_needed(copied: Built) -> None:
    script = (
        "import sys; from pipeline.__main__ import main; sys.argv = ['pipeline', *sys.argv[1:]]; code = main();"
        "heavy = {'torch', 'tensorflow', 'onnxruntime', 'onnx', 'sklearn', 'torchvision'} & set(sys.modules);"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else code)"
    )
    arguments = ["smoke", str(copied.repository), "digits_other", "--work-dir", str(copied.folder / "elsewhere")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (level(copied, "digits_other"), level(copied, "digits_onnx")) == ("served", "none")


def test_an_older_version_that_the_policy_names_is_judged_by_its_own_samples(copied: Built, other_digits: Path) -> None:
    """The newest version is of other weights; the policy serves the first, and so does the ensemble."""
    policy = ("--set", "triton.version_policy={specific: {versions: [1]}}")
    done = copied.again("--serve", "--variant", "onnx", *policy, "--set", f"source.onnx.file={other_digits}")
    assert done.exit_code == 0, done.output
    assert done.variant("digits_onnx")["version"] == 2
    assert done.variant("digits_onnx")["proof"] == "none"
    assert "version 2 was not served: version_policy serves 1" in " ".join(done.variant("digits_onnx")["notes"])
    wiring = json.loads(
        (copied.repository / "digits" / str(done.variant("digits")["version"]) / "wiring.json").read_text()
    )
    assert wiring["versions"]["digits_onnx"] == 1
    status, shown, rows = smoke(copied, "digits_onnx", "digits")
    assert status == 0, shown
    names = {check["name"] for check in rows["digits_onnx"]["smoke"]["checks"]}
    assert "version 1 samples" in names
    assert "version 2 samples" not in names
    assert (level(copied, "digits_onnx", 1), level(copied, "digits_onnx", 2)) == ("served", "none")


def test_what_is_wrong_is_caught(copied: Built) -> None:
    settings = copied.repository / "digits_postprocess" / "1" / "settings.json"
    settings.write_text(settings.read_text().replace('"3", "4"', '"4", "3"'))
    status, _, rows = smoke(copied)
    assert status == 5
    failed = {check["name"] for check in rows["digits"]["smoke"]["checks"] if check["outcome"] == "failed"}
    assert {"manifest", "images", "raw body"} <= failed
    assert rows["digits_onnx"]["smoke"]["outcome"] == "passed"
    assert level(copied, "digits") == "none"


def test_a_running_server_is_proven_by_the_repository_s_records(copied: Built) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "serve", str(copied.repository), "--http-port", "0", "--grpc-port", "0",
         "--metrics-port", "0", "--work-dir", str(copied.work_dir)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    found: dict[str, str] = {}
    for line in child.stdout:
        words = line.split()
        found |= {words[0]: words[1]} if len(words) == 2 else {}
        if "Ctrl-C" in line:
            break
    status, shown, rows = smoke(copied, "--url", found["HTTP"], "--grpc-url", found["gRPC"])
    child.terminate()
    child.communicate(timeout=60)
    assert status == 0, shown
    assert {row["smoke"]["outcome"] for row in rows.values()} == {"passed"}
    assert level(copied, "digits") == "none"  # that server's files are not known to be these


def test_what_cannot_be_known_is_said(copied: Built) -> None:
    for arguments, code, words in (
        (("nobody",), 2, "no model is called nobody"),
        (("digits_preprocess",), 2, "answers only inside the ensemble digits"),
        (("--set", "name=x"), 2, "go with a YAML"),
    ):
        status, shown, _ = smoke(copied, *arguments)
        assert (status, words in " ".join(shown.split())) == (code, True), shown
    path = state_dir(copied.repository) / "manifests" / "digits_other" / "1.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key != "serving"}))
    status, shown, _ = smoke(copied, "digits_other")
    assert status == 4
    assert "build it once more" in shown
    state_dir(copied.repository).rename(copied.folder / "lost")
    status, shown, _ = smoke(copied)
    assert status == 2
    assert "nothing is known of this repository" in shown


def test_a_failing_smoke_test_leaves_the_repository_byte_for_byte(copied: Built) -> None:
    def all_files() -> dict[str, str]:
        found = {**files.tree_digests(copied.repository), **files.tree_digests(state_dir(copied.repository))}
        return {name: digest for name, digest in found.items() if "lock" not in name}

    before = all_files()
    done = copied.again("--serve", "--set", "serve.request_timeout_s=0.001", "--set", "triton.max_batch_size=4")
    assert done.exit_code == 5, done.output
    assert "do not publish" not in done.output
    assert all_files() == before
    assert {row["version"] for row in done.report["variants"]} == {None}
    assert list((state_dir(copied.repository) / "candidates").iterdir()) == []
