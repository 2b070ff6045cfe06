"""Every shipped configuration builds, is emitted, served and smoke-tested."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import jsonschema
import pytest

from pipeline.repository.manifest import read_manifest
from tests.integration.conftest import CONFIGS, ROOT, Built, pipeline

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

Build = Callable[[str], Built]


def test_no_configuration_is_forgotten() -> None:
    assert set(NAMES) == {
        "resnet", "mnist_convnet", "resnet50_imagenet", "text_classifier", "recurrent", "from_onnx", "keras_digits",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_is_proven_on_a_real_server(built: Build, name: str) -> None:
    done = built(name)
    assert done.exit_code == 0, done.output
    report = done.report
    assert report["exit_code"] == 0
    assert report["variants"]
    for variant in report["variants"]:
        assert variant["version"] == 1
        assert variant["format"] == "ensemble" or variant["parity"]["passed"]
        if variant["format"] == "tensorrt" and report["environment"]["gpu"] is None:
            assert variant["smoke"]["outcome"] == "not run"
            assert any(note.startswith("built and inspected, not run") for note in variant["notes"])
            continue
        assert variant["smoke"]["outcome"] == "passed"
        if variant["server"] == "none":
            assert {check["name"] for check in variant["smoke"]["checks"]} >= {"compiled", "scores, batch 1"}
            continue
        if variant["server"] == "tfserving":
            assert any(note.startswith("the server was not run") for note in variant["notes"])
            continue
        protocols = {check["protocol"] for check in variant["smoke"]["checks"]}
        assert protocols >= {"http", "grpc"}
        assert len(variant["smoke"]["checks"]) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_its_report_is_what_the_schema_promises(built: Build, name: str) -> None:
    schema = json.loads(pipeline("schema", "--report").stdout)
    jsonschema.validate(built(name).report, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", NAMES)
def test_its_repository_passes_the_linter(built: Build, name: str) -> None:
    done = pipeline("lint", built(name).repository, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["findings"] == []


def test_resnet_reaches_its_accuracy_on_held_out_digits(built: Build) -> None:
    *variants, ensemble = built("resnet").report["variants"]
    assert (ensemble["name"], ensemble["format"]) == ("resnet", "ensemble")
    for variant in variants:
        assert variant["accuracy"]["value"] >= 0.985


@pytest.mark.parametrize("name", ["resnet", "mnist_convnet"])
def test_images_in_give_the_source_model_s_labels(built: Build, name: str) -> None:
    checks = built(name).variant(name)["smoke"]["checks"]
    count = 256 if name == "resnet" else 359
    (raw,) = (check["detail"] for check in checks if check["name"] == "raw body")
    assert raw.startswith(f"{count} images as bare bodies: first label as the reference's for ")


def test_mnist_convnet_reaches_its_accuracy(built: Build) -> None:
    assert built("mnist_convnet").report["variants"][0]["accuracy"]["value"] >= 0.97


def test_mnist_convnet_answers_images_with_labels_on_torchserve(built: Build) -> None:
    row = built("mnist_convnet").variant("mnist_convnet.torchserve")
    assert (row["server"], row["format"], row["version"]) == ("torchserve", "mar", 1)
    told = {(check["name"], check["protocol"]): check["detail"] for check in row["smoke"]["checks"]}
    assert "359 samples" in told["predictions", "http"]
    assert "labels and probabilities of output log_probabilities" in told["predictions", "http"]


@pytest.mark.parametrize("name", ["resnet", "mnist_convnet"])
def test_int8_is_within_a_point_of_fp32_on_samples_that_calibration_never_saw(built: Build, name: str) -> None:
    done = built(name)
    fp32 = done.variant(f"{name}_onnx")["accuracy"]["value"]
    for key in ("onnx_int8", "trt_int8"):
        assert done.variant(f"{name}_{key}")["accuracy"]["value"] == pytest.approx(fp32, abs=0.01)
    homes = {"onnx_int8": done.repository, "trt_int8": done.rtx_repository}
    graphs = [read_manifest(home, f"{name}_{key}", 1)["properties"] for key, home in homes.items()]
    assert (graphs[0]["recipe"], graphs[0]["calibration"]["samples"]) == ("U8S8", 128)
    assert (graphs[1]["precision"], graphs[1]["flavour"]) == ("int8", "tensorrt_rtx")
    assert graphs[1]["layers"]["Int8"] > 0


def test_the_recurrent_model_falls_back_and_says_so(built: Build) -> None:
    done = built("recurrent")
    onnx, torchscript = done.variant("recurrent_onnx"), done.variant("recurrent_torchscript")
    assert any("exporter" in note for note in onnx["notes"])
    assert any("recurrent.py" in note and "script" in note for note in torchscript["notes"])


def test_the_code_and_the_graph_of_a_torchscript_file_are_read_as_the_docs_say(built: Build) -> None:
    name = "recurrent_torchscript"
    (line,) = re.findall(rf"^python -c \"(.*{name}.*)\"$", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", line.replace("model_repository", str(built("recurrent").repository))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, _, graph = done.stdout.partition("graph(")
    assert "for step in range(torch.size(rows, 0)):" in code
    assert "while " in code
    assert graph.count("prim::Loop(") == 2


def test_every_run_lists_its_steps_with_times(built: Build) -> None:
    durations = built("resnet").report["durations_s"]
    assert list(durations)[:3] == ["source[resnet]", "samples[resnet]", "export[resnet_onnx]"]
    assert all(seconds >= 0 for seconds in durations.values())
