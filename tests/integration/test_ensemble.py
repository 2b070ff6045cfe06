"""Image in, label out, on the real server: one build of a small model, then what a user does with what it emitted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.base import files
from pipeline.data.samples import read
from pipeline.images.preprocessing import png
from tests.integration.conftest import CONFIGS, ROOT, Built, pipeline, run

YAML = f"""\
name: digits
source:
  onnx: {{file: {CONFIGS}/models/digits.onnx}}
inputs:
  image: {{dtype: float32, shape: [N, 1, 8, 8], layout: NCHW}}
preprocess: {{max_pixels: 1000000}}
outputs:
  logits: {{dtype: float32, shape: [N, 10], labels: digits}}
postprocess: {{top_k: 3}}
samples: {{from: {{dataset: digits}}, count: 48}}
variants:
  onnx: {{format: onnx}}
  other: {{from: onnx}}
triton: {{target: "24.10", max_batch_size: 8}}
"""
MODELS = ("digits", "digits_preprocess", "digits_postprocess")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("ensemble")
    (folder / "digits.yaml").write_text(YAML)
    done = run(folder / "digits.yaml", folder)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def copied(digits: Built, tmp_path: Path) -> Built:
    return digits.copy(tmp_path / "copy")


@dataclass(frozen=True)
class Serving:
    url: str
    curl: str
    process: psutil.Process


@pytest.fixture(scope="module")
def serving(digits: Built) -> Iterator[Serving]:
    """``serve`` on free ports, as an operator runs it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "serve", str(digits.repository), "--http-port", "0", "--grpc-port", "0",
         "--metrics-port", "0", "--work-dir", str(digits.work_dir), "--watch", "--watch-interval-s", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    url = curl = ""
    for line in child.stdout:
        url = line.split()[1] if line.startswith("  HTTP") else url
        curl = line.strip() if line.startswith("  curl") else curl
        if "Ctrl-C" in line:
            break
    drain = threading.Thread(target=child.stdout.read, daemon=True)
    drain.start()
    yield Serving(url, curl, psutil.Process(child.pid))
    child.terminate()
    assert child.wait(timeout=60) == 0
    drain.join()
    child.stdout.close()


def curl(serving: Serving, file: Path, *more: str) -> str:
    """What curl prints for a file, with no client library."""
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--data-binary", f"@{file}", "-H", "Inference-Header-Content-Length: 0",
         "-H", "Content-Type: application/octet-stream", *more, f"{serving.url}/v2/models/digits/infer"],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


def checks(done: Built, name: str = "digits") -> dict[tuple[str, str], str]:
    rows = done.variant(name)["smoke"]["checks"]
    assert all(row["outcome"] == "passed" for row in rows), rows
    return {(row["name"], row["protocol"]): row["detail"] for row in rows}


def version_numbers(done: Built) -> list[int]:
    return [max(int(item.name) for item in (done.repository / name).glob("[0-9]*")) for name in MODELS]


def test_the_build_emits_and_proves_the_ensemble(digits: Built) -> None:
    row = digits.variant("digits")
    assert (row["format"], row["server"], row["version"], row["precision"]) == ("ensemble", "triton", 1, "fp32")
    details = checks(digits)
    assert details["manifest", "-"] == ""
    assert "digits_preprocess, digits_onnx, digits_postprocess" in details["index", "grpc"]
    assert details["raw body", "http"].startswith("48 images as bare bodies: first label as the reference's for 48 of")
    assert "at batch 1, 4, 8" in details["images", "http"]
    assert "too many pixels" in details["bad images", "grpc"]
    assert details["dynamic batching", "grpc"].startswith("preprocessing: ")
    linted = pipeline("lint", digits.repository, "--json")
    assert json.loads(linted.stdout)["findings"] == []


def test_what_is_emitted_stands_alone(digits: Built) -> None:
    version = digits.repository / "digits_preprocess" / "1"
    for name, source in (("preprocess", "preprocessing.py"), ("postprocess", "postprocessing.py")):
        copy = digits.repository / f"digits_{name}" / "1" / source
        assert copy.read_bytes() == (ROOT / "pipeline" / "images" / source).read_bytes()
        emitted = [*copy.parent.glob("*.py")]
        assert len(emitted) == 2
        assert not any("pipeline import" in path.read_text() for path in emitted)
    (here, *_) = sorted(version.glob("vendor/cp3*"), reverse=True)
    assert (here / "PIL" / "Image.py").is_file()
    assert files.size_bytes(version) < 40e6
    assert json.loads((digits.repository / "digits" / "1" / "wiring.json").read_text())["steps"][1] == "digits_onnx"
    container = version / "vendor" / "cp310-x86_64"
    notes = " ".join(digits.variant("digits")["notes"])
    assert container.is_dir() or "of Python 3.10, needs `pip install 'pillow<=" in notes


def test_curl_asks_for_an_image_s_labels(digits: Built, serving: Serving, tmp_path: Path) -> None:
    entry = next(digits.work_dir.glob("store/entries/*/samples.npz"))
    for number, sample in enumerate(read(entry).samples[:5]):
        (tmp_path / "digit.png").write_bytes(sample.image)
        text = curl(serving, tmp_path / "digit.png")
        header, _, _ = text.partition('[{"label"')
        assert '"datatype":"BYTES","shape":[1,1]' in header
        found = json.loads(text[len(header) :])
        assert found[0]["label"] == str(int(sample.outputs["logits"].argmax())), number
        assert len(found) == 3


def test_the_printed_curl_line_works_as_it_is(serving: Serving) -> None:
    done = subprocess.run(serving.curl, shell=True, capture_output=True, check=True, timeout=60)
    assert b'[{"label": "' in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", ""),
        ("page.png", b"<html>not found</html>", "no image in JPEG, PNG, WEBP"),
        ("old.bmp", b"BM" + bytes(60), "no image in JPEG, PNG, WEBP"),
        ("half.png", png(np.zeros((64, 64, 1), np.uint8))[:60], "truncated"),
        ("wide.png", png(np.zeros((1001, 1000, 1), np.uint8)), "at most 1000000 are accepted"),
    ],
)
def test_curl_is_told_what_is_wrong_with_a_file(
    serving: Serving, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    status = curl(serving, tmp_path / name, "-o", str(tmp_path / "answer"), "-w", "%{http_code}")
    assert status == "400"
    assert reason in json.loads((tmp_path / "answer").read_text())["error"]


def test_predict_sends_the_file_and_prints_labels(digits: Built, serving: Serving) -> None:
    example = digits.repository / "digits" / "1" / "example.png"
    done = pipeline("predict", "digits", "--input", example, "--url", serving.url, "--top", "2", "--json")
    rows = json.loads(done.stdout)
    assert [set(row) for row in rows] == [{"label", "probability"}] * 2
    assert rows[0]["probability"] > 0.5
    refused = pipeline("predict", "digits", "--input", digits.config, "--url", serving.url)
    assert refused.returncode == 5
    assert "not a usable image" in refused.stdout


def test_images_are_read_by_the_pillow_that_was_published(digits: Built, serving: Serving) -> None:
    mapped = {
        Path(item.path)
        for child in serving.process.children(recursive=True)
        if "stub" in child.name()
        for item in child.memory_maps()
        if "_imaging.c" in item.path
    }
    assert mapped
    assert all(path.is_relative_to(digits.repository / "digits_preprocess" / "1" / "vendor") for path in mapped)


def test_a_watcher_asks_with_an_image_and_gets_answers(digits: Built, serving: Serving) -> None:
    (path,) = digits.work_dir.glob("runs/serve-*/watch.json")
    deadline = time.monotonic() + 60
    while (state := json.loads(path.read_text()))["rounds"] < 1:
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    asked = {name: state["models"][name]["input"] for name in MODELS}
    assert asked == dict.fromkeys(MODELS, "golden sample")
    assert (state["failures"], state["heals"]) == (0, 0)


def test_smoke_against_a_running_server(digits: Built, serving: Serving) -> None:
    """The gRPC port is not known here, so only what is said over HTTP counts."""
    done = digits.again("--url", serving.url, "--grpc-url", "127.0.0.1:1", "--variant", "onnx", command="smoke")
    http = {row["outcome"] for row in done.variant("digits")["smoke"]["checks"] if row["protocol"] == "http"}
    assert http == {"passed"}
    assert done.exit_code == 5


def test_equal_content_makes_no_new_version_and_other_settings_make_one(digits: Built, tmp_path: Path) -> None:
    copied = digits.copy(tmp_path / "copy")
    assert (copied.repository / "digits_preprocess" / "1" / "__pycache__").is_dir()  # it has been served
    again = copied.again("--no-serve")
    assert again.exit_code == 0, again.output
    assert version_numbers(again) == [1, 1, 1]
    assert again.variant("digits")["cached"]
    fewer = copied.again("--no-serve", "--set", "postprocess.top_k=1")
    assert version_numbers(fewer) == [2, 1, 2]  # the ensemble names the version of each part
    other = copied.again("--no-serve", "--set", "ensemble.from=other")
    assert version_numbers(other)[0] == 3
    assert 'model_name: "digits_other"' in (copied.repository / "digits" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("changes", "example", "refused"),
    [
        (("formats=[jpeg]",), "example.jpg", "an image of another format"),
        (("resize=8", "crop=[8,8]"), "example.png", "a strip that becomes too many pixels"),
    ],
)
def test_other_preprocessing_is_proven_as_well(
    digits: Built, tmp_path: Path, changes: tuple[str, ...], example: str, refused: str
) -> None:
    words = [word for change in changes for word in ("--set", f"preprocess.{change}")]
    done = digits.copy(tmp_path / "copy").again("--variant", "onnx", *words)
    assert done.exit_code == 0, done.output
    details = checks(done)
    assert "images at batch 1, 4, 8: first label as the reference's" in details["images", "http"]
    assert refused in details["bad images", "http"]
    assert any((done.repository / "digits").glob(f"*/{example}"))


def test_without_its_variant_there_is_no_ensemble(copied: Built) -> None:
    done = copied.again("--no-serve", "--variant", "other")
    assert [row["name"] for row in done.report["variants"]] == ["digits_other"]


def test_a_refused_variant_takes_its_ensemble_with_it(copied: Built) -> None:
    done = copied.again("--no-serve", "--set", "variants.onnx.gates.accuracy.min=1.0")
    assert done.exit_code == 4
    assert "the variant that answers in it was not made" in done.variant("digits")["error"]
    assert done.variant("digits")["version"] is None
    assert "digits_onnx, which it is made from, was refused" in done.variant("digits_other")["error"]
    assert done.variant("digits_other")["version"] is None


def test_swapped_labels_in_what_is_served_are_caught(copied: Built) -> None:
    settings = copied.repository / "digits_postprocess" / "1" / "settings.json"
    text = settings.read_text()
    settings.write_text(text.replace('"3", "4"', '"4", "3"'))
    assert settings.read_text() != text
    done = copied.again(command="smoke")
    assert done.exit_code == 5
    failed = {row["name"] for row in done.variant("digits")["smoke"]["checks"] if row["outcome"] == "failed"}
    assert {"manifest", "images", "raw body"} <= failed
    assert done.variant("digits_onnx")["smoke"]["outcome"] == "passed"
