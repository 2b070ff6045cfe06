"""The smoke test notices what is wrong with a served model, and the build's exit code says so."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.integration.conftest import ROOT, Built, pipeline

Build = Callable[[str], Built]


@pytest.fixture
def digits(built: Build, tmp_path: Path) -> Built:
    return built("from_onnx").copy(tmp_path / "copy")


def failures(done: Built, name: str) -> dict[str, str]:
    checks = done.variant(name)["smoke"]["checks"]
    return {check["name"]: check["detail"] for check in checks if check["outcome"] == "failed"}


def test_a_model_file_changed_after_emission_is_caught(digits: Built) -> None:
    """One bit of a bias: the file still loads, and answers wrong."""
    path = digits.repository / "digits_onnx" / "1" / "model.onnx"
    (bias,) = (tensor.raw_data for tensor in onnx.load(path).graph.initializer if tensor.name == "b1")
    data = bytearray(path.read_bytes())
    data[data.index(bias) + 3] ^= 0x40  # the top bit of the first one's exponent
    path.write_bytes(data)
    done = digits.again(command="smoke")
    assert done.exit_code == 5, done.output
    failed = failures(done, "digits_onnx")
    assert "model.onnx" in failed["manifest"]
    assert "version 1 samples" in failed


def test_a_truncated_model_file_is_caught_with_the_server_s_reason(digits: Built) -> None:
    path = digits.repository / "digits_onnx" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    done = digits.again(command="smoke")
    assert done.exit_code == 5, done.output
    assert "digits_onnx" in done.variant("digits_onnx")["error"]
    assert "Traceback" not in done.output


def test_a_truncated_engine_is_caught_without_a_gpu(digits: Built) -> None:
    path = digits.rtx_repository / "digits_trt_fp16" / "1" / "model_sm80_sm89.engine"
    path.write_bytes(path.read_bytes()[:-100])
    again = digits.again(command="smoke")
    assert again.exit_code == 5, again.output
    assert "model_sm80_sm89.engine" in failures(again, "digits_trt_fp16")["manifest"]
    assert again.variant("digits_onnx")["smoke"]["outcome"] == "passed"
    done = pipeline("lint", digits.rtx_repository, "--json")
    assert done.returncode == 4
    assert {"engine-truncated", "engine-sha256"} <= {row["rule"] for row in json.loads(done.stdout)["findings"]}


def test_swapped_labels_are_caught(digits: Built) -> None:
    path = digits.repository / "digits_onnx" / "labels.txt"
    labels = path.read_text().splitlines()
    labels[3], labels[8] = labels[8], labels[3]
    path.write_text("\n".join(labels) + "\n")
    done = digits.again(command="smoke")
    assert done.exit_code == 5, done.output
    assert "labels" in " ".join(failures(done, "digits_onnx"))


def test_a_rebuild_replaces_a_corrupted_version_by_a_new_one(digits: Built) -> None:
    path = digits.repository / "digits_onnx" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    done = digits.again()
    assert done.exit_code == 0, done.output
    assert done.variant("digits_onnx")["version"] == 2
    assert any("no longer matches its manifest" in note for note in done.variant("digits_onnx")["notes"])


def _servers(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True) if psutil.pid_exists(parent) else []
    return [child for child in children if child.name() == "tritonserver"]


def test_a_server_killed_during_the_smoke_test_is_noticed(digits: Built) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "smoke", str(digits.config), "--repository", str(digits.repository),
         "--work-dir", str(digits.work_dir), "--set", "samples.count=200"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if "models ready" in line:
            for server in _servers(child.pid):
                server.kill()
            break
    output = child.stdout.read()
    child.stdout.close()
    assert child.wait(timeout=120) == 5, output
    assert "server" in output
    assert "Traceback" not in output


@pytest.fixture
def served(digits: Built) -> Iterator[tuple[Built, psutil.Process, dict[str, str]]]:
    """``serve`` of both repositories on free ports, as an operator runs it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "serve", str(digits.repository), str(digits.rtx_repository),
         "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--work-dir", str(digits.work_dir)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    found: dict[str, str] = {}
    for line in child.stdout:
        words = line.split(maxsplit=1)
        if words and words[0] in {"HTTP", "gRPC", "metrics"}:
            found[words[0]] = words[1].strip()
        if line.startswith("  not served, for want of a GPU: "):
            found["left out"] = line.rpartition(": ")[2].strip()
        if "curl " in line:
            found["curl"] = line.strip()
        if "Ctrl-C" in line:
            break
    drain = threading.Thread(target=child.stdout.read, daemon=True)
    drain.start()
    yield digits, psutil.Process(child.pid), found
    if child.poll() is None:
        child.terminate()
        assert child.wait(timeout=60) == 0
    drain.join()
    child.stdout.close()
    assert not _servers(child.pid)


def test_the_printed_curl_line_works(served: tuple[Built, psutil.Process, dict[str, str]]) -> None:
    assert served[2]["left out"] == "digits_trt_fp16"
    done = subprocess.run(served[2]["curl"], shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["outputs"]


def test_smoke_against_a_running_server(served: tuple[Built, psutil.Process, dict[str, str]]) -> None:
    digits, _, urls = served
    at = ("--url", urls["HTTP"], "--grpc-url", urls["gRPC"])
    done = digits.again(*at, command="smoke")
    assert done.exit_code == 0, done.output
    assert "in that server's repository, and not loaded" in done.variant("digits_trt_fp16")["skipped_reason"]
    assert done.variant("digits_onnx")["unmeasured_reason"] == "a server that others may be using is not put under load"

    # an engine that it was asked for and could not load is another matter
    load = urllib.request.Request(f"{urls['HTTP']}/v2/repository/models/digits_trt_fp16/load", data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(load)
    done = digits.again(*at, "--variant", "trt_fp16", command="smoke")
    assert done.exit_code == 5, done.output
    assert "no GPUs are available" in done.variant("digits_trt_fp16")["error"]


def test_a_killed_stub_is_noticed_though_triton_says_ready(
    served: tuple[Built, psutil.Process, dict[str, str]],
) -> None:
    digits, parent, urls = served
    stubs = [child for child in parent.children(recursive=True) if "stub" in child.name()]
    assert stubs
    for stub in stubs:
        stub.kill()
    done = digits.again("--url", urls["HTTP"], "--grpc-url", urls["gRPC"], command="smoke")
    assert done.exit_code == 5, done.output
    assert "not healthy" in done.output


def test_predict_prints_labels(served: tuple[Built, psutil.Process, dict[str, str]], tmp_path: Path) -> None:
    digits = load_digits()
    image = tmp_path / "digit.png"
    Image.fromarray((digits.images[0] * 15.9).astype(np.uint8)).save(image)
    done = pipeline("predict", "digits_onnx", "--input", image, "--url", served[2]["HTTP"], "--top", "2")
    assert done.returncode == 0, done.stdout
    assert done.stdout.split()[1] == str(digits.target[0])


def test_a_taken_port_is_said(digits: Built) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = pipeline("serve", digits.repository, "--http-port", str(port), "--work-dir", digits.work_dir)
    assert done.returncode == 3, done.stdout
    assert str(port) in done.stdout
    assert "Traceback" not in done.stdout


def test_the_server_dies_with_a_killed_parent(digits: Built) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "serve", str(digits.repository), "--http-port", "0", "--grpc-port", "0",
         "--metrics-port", "0", "--work-dir", str(digits.work_dir)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if "Ctrl-C" in line:
            break
    family = psutil.Process(child.pid).children(recursive=True)
    assert any(process.name() == "tritonserver" for process in family)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 15
    while any(process.is_running() and process.status() != "zombie" for process in family):
        assert time.monotonic() < deadline, [process for process in family if process.is_running()]
        time.sleep(0.1)
    child.stdout.close()


def test_a_refused_variant_is_not_emitted_and_its_sibling_is(digits: Built) -> None:
    done = digits.again(
        "--no-serve", "--set", "variants.strict.from=onnx", "--set", "variants.strict.gates.accuracy.min=1.0",
    )  # fmt: skip
    assert done.exit_code == 4, done.output
    assert done.variant("digits_strict")["version"] is None
    assert "refused by a gate" in done.variant("digits_strict")["error"]
    assert done.variant("digits_onnx")["version"] == 1
    assert not (done.repository / "digits_strict").exists()
    assert "--variant strict" in done.output


def test_a_container_without_docker_names_the_command_to_run(digits: Built) -> None:
    done = digits.again("--set", "serve.engine=container", env={"DOCKER_HOST": "unix:///nonexistent.sock"})
    assert done.exit_code == 3, done.output
    assert "docker run" in done.output
    assert "nvcr.io/nvidia/tritonserver:24.10-py3" in done.output


def test_older_served_versions_answer_as_they_were_proven(digits: Built, other_digits: Path) -> None:
    """Two versions of different weights under version_policy all: each is held against its own golden samples."""
    done = digits.again(
        "--set", "triton.version_policy={all: {}}", "--set", f"source.onnx.file={other_digits}",
        "--variant", "onnx",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.variant("digits_onnx")["version"] == 2
    names = " ".join(f"{check['name']} {check['detail']}" for check in done.variant("digits_onnx")["smoke"]["checks"])
    assert "version 1" in names
    assert "version 2" in names
