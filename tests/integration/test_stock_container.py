"""What README tells a newcomer to type works as typed, and the main repository loads in a stock container."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.servers.process import Ports, free_ports
from pipeline.servers.triton import container
from pipeline.servers.triton import embedded as triton
from tests.integration.conftest import ROOT, Built, pipeline

Build = Callable[[str], Built]


def readme_lines() -> list[str]:
    """The commands below "Then serve it", one a line."""
    _, found, text = (ROOT / "README.md").read_text().partition("\nThen serve it")
    assert found
    return [line for line in text.split("```")[1].replace("\\\n", " ").splitlines() if line]


def line_of(word: str) -> str:
    (line,) = (line for line in readme_lines() if line.startswith((word, f".venv/bin/python -m pipeline {word} ")))
    return line


@dataclass(frozen=True)
class Clone:
    """A clone's folder after ``make build``, and README's ``serve`` line running there, on free ports."""

    folder: Path
    port: str
    grpc_port: str
    printed: str

    def run(self, line: str) -> str:
        """What a line of README prints, typed there; only the port is another."""
        typed = line.replace("127.0.0.1:8000/", f"127.0.0.1:{self.port}/")
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", typed], cwd=self.folder, env=_environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{typed}\n{done.stdout}"
        return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def resnet(built: Build) -> Built:
    done = built("resnet")
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def clone(resnet: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    folder = tmp_path_factory.mktemp("clone")
    (folder / ".venv").symlink_to(sys.prefix)
    for found in resnet.folder.glob("repository*"):
        (folder / found.name.replace("repository", "model_repository", 1)).symlink_to(found)
    command = line_of("serve").partition("#")[0] + " --http-port 0 --grpc-port 0 --metrics-port 0"
    child = subprocess.Popen(
        shlex.split(command), cwd=folder, env=_environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    drain = threading.Thread(target=child.stdout.read, daemon=True)
    drain.start()
    text = "".join(lines)
    try:
        ports = [re.search(rf"{name} +\S*:(\d+)\n", text)[1] for name in ("HTTP", "gRPC")]
        yield Clone(folder, ports[0], ports[1], text)
    finally:
        child.terminate()
        assert child.wait(timeout=60) == 0, text
        drain.join()
        child.stdout.close()


def test_readme_s_curl_line_answers_and_is_the_one_that_serve_prints(clone: Clone) -> None:
    line = line_of("curl")
    answer = json.loads(clone.run(line))
    assert len(answer) == 3
    assert set(answer[0]) == {"label", "probability"}
    (printed,) = (shlex.split(found) for found in clone.printed.splitlines() if found.startswith("  curl "))
    assert printed == shlex.split(line.partition("|")[0].replace(":8000/", f":{clone.port}/"))


def test_readme_s_predict_line_prints_the_label_that_curl_does(clone: Clone) -> None:
    printed = clone.run(f"{line_of('predict')} --url 127.0.0.1:{clone.port}")
    assert printed.split()[1] == json.loads(clone.run(line_of("curl")))[0]["label"]


def test_readme_s_load_line_accounts_for_all_its_requests(clone: Clone) -> None:
    line = line_of("load")
    assert "--requests 500 " in line
    told = json.loads(clone.run(f"{line} --url 127.0.0.1:{clone.port} --json 2>/dev/null"))
    assert (told["sent"], told["ok"], told["failed"]) == (500, 500, 0)


def test_no_engine_is_left_out_of_what_readme_serves(clone: Clone, resnet: Built) -> None:
    """All of the main repository is served where there is no GPU; engines are beside it."""
    assert "not served" not in clone.printed
    models = {path.name for path in resnet.rtx_repository.iterdir()}
    assert models == {"resnet_trt_fp16", "resnet_trt_int8"}
    assert not models & set(triton.models_of(resnet.repository))


def test_readme_s_docker_line_is_the_one_that_proofs_run(resnet: Built, clone: Clone) -> None:
    words = shlex.split(line_of("docker").replace("$PWD", str(clone.folder)))
    image = words.index("nvcr.io/nvidia/tritonserver:24.10-py3")
    models = triton.models_of(clone.folder / "model_repository")
    usual = Ports(http=8000, grpc=8001, metrics=8002)
    asked = container.docker_run(clone.folder / "model_repository", models, release="24.10", name="x", ports=usual)
    assert "--gpus=all" not in asked  # README's has none either
    assert words[image : image + 3] == asked[asked.index(words[image]) :]
    assert f"--volume={words[words.index('-v') + 1]}" in asked
    assert words[words.index("-p") + 1] == "127.0.0.1:8000-8002:8000-8002"
    assert "--shm-size=1g" in words
    done = pipeline("lint", resnet.repository, "--target", "24.10")
    assert done.returncode == 0, done.stdout
    assert "0 errors, 0 warnings" in done.stdout


def test_what_readme_s_container_is_told_starts_a_server_without_the_backend_of_rtx(
    clone: Clone, resnet: Built, tmp_path: Path
) -> None:
    """The embedded server's program with the container's arguments: it loads every model there is, or it ends."""
    line = line_of("docker").replace("/models ", f"{clone.folder}/model_repository ")
    told = shlex.split(line.rpartition(" tritonserver ")[2])
    log = tmp_path / "server.log"
    with triton.embedded(resnet.repository, ["resnet_onnx"], log_path=log, start_timeout_s=60) as served:
        (running,) = (shlex.split(text[2:]) for text in log.read_text().splitlines() if text.startswith("$ "))
        server = psutil.Process(served.server.pid)
        (backends,) = (word.partition("=")[2] for word in running if word.startswith("--backend-directory="))
        shutil.rmtree(Path(backends) / "tensorrt_rtx")
        ours = [word for word in running if word.startswith(("--backend-directory=", "--cache-directory="))]
        ports = dict(zip(("http", "grpc", "metrics"), free_ports("127.0.0.1", (0, 0, 0)), strict=True))
        flags = [
            flag for name, port in ports.items() for flag in (f"--{name}-address=127.0.0.1", f"--{name}-port={port}")
        ]
        with (tmp_path / "container.log").open("w") as output:
            child = subprocess.Popen(
                [running[0], *told, *ours, *flags], env=server.environ(), stdout=output, stderr=output
            )
        try:
            rows = _index(child, ports["http"], tmp_path / "container.log")
        finally:
            child.terminate()
            child.wait(timeout=60)
    assert {row["name"] for row in rows} == set(triton.models_of(resnet.repository))
    assert {row["state"] for row in rows} == {"READY"}


def _index(child: subprocess.Popen[bytes], port: int, log: Path) -> list[dict[str, str]]:
    """The models of a server, once it says that it is ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 120
    while True:
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            opener.open(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    with opener.open(f"http://127.0.0.1:{port}/v2/repository/index", data=b"", timeout=10) as answer:
        found: list[dict[str, str]] = json.load(answer)
    return found


def test_lint_says_of_rtx_engines_that_no_container_loads_them_and_nothing_else(built: Build) -> None:
    done = built("from_onnx")
    for target in ((), ("--target", "24.10"), ("--target", "26.08")):
        linted = pipeline("lint", done.rtx_repository, "--json", *target)
        assert linted.returncode == 4, linted.stdout
        (finding,) = json.loads(linted.stdout)["findings"]
        assert (finding["rule"], finding["severity"]) == ("backend-not-in-containers", "error")
        assert finding["path"] == "digits_trt_fp16/config.pbtxt"
        assert pipeline("lint", done.repository, *target).returncode == 0


def test_an_older_repository_keeps_its_rtx_engines_and_is_told(built: Build, tmp_path: Path) -> None:
    """As builds before wrote it: the engine among the others."""
    done = built("from_onnx").copy(tmp_path / "copy")
    engine = "digits_trt_fp16"
    shutil.copytree(done.rtx_repository / engine, done.repository / engine)
    manifests = f"state/manifests/{engine}"
    shutil.copytree(f"{done.rtx_repository}.{manifests}", f"{done.repository}.{manifests}")
    assert "backend-not-in-containers" in pipeline("lint", done.repository, "--target", "24.10").stdout
    again = done.again("--no-serve")
    assert again.exit_code == 0, again.output
    assert (done.repository / engine / "1" / "model_sm80_sm89.engine").is_file()
    (note,) = (note for note in again.variant(engine)["notes"] if "earlier build" in note)
    assert "repository/digits_trt_fp16" in note
    both = pipeline("serve", done.repository, done.rtx_repository, "--work-dir", done.work_dir)
    assert both.returncode == 2, both.stdout
    assert "two repositories hold a model of the same name" in both.stdout
