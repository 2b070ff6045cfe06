"""`serve --watch` against the real server: what Triton does not notice is healed, and what answers is left alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.servers import process
from pipeline.servers.triton import embedded as triton
from pipeline.servers.triton import launch
from pipeline.servers.triton.watch import Watch
from tests.models import make_models as make

ROOT = Path(__file__).parents[2]
INTERVAL_S = 0.3
WAIT_S = 30.0

STUCK = """
import os, time
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        while os.path.exists("{flag}"):
            time.sleep(0.05)
        x = [pb.get_input_tensor_by_name(item, "x").as_numpy() for item in requests]
        return [pb.InferenceResponse([pb.Tensor("y", array * 2)]) for array in x]
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [3] }
output { name: "y" data_type: TYPE_FP32 dims: [3] }
ensemble_scheduling {
  step { model_name: "first" model_version: -1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "between" } }
  step { model_name: "second" model_version: -1
         input_map { key: "x" value: "between" } output_map { key: "y" value: "y" } }
}
"""


def _stub(server: int, model: str) -> psutil.Process:
    """The live process of a model's first instance."""
    for child in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and f"/{model}/" in " ".join(child.cmdline()):
                return child
    raise AssertionError(f"no process of {model}")


def _infer(http_url: str, model: str) -> int:
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    request = urllib.request.Request(f"{http_url}/v2/models/{model}/infer", data=json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def _loads(log: Path, model: str) -> int:
    """How often the server has loaded a model."""
    return log.read_text().count(f"successfully loaded '{model}'")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watch") / "repository"
    for name in ("first", "second", "other"):
        make.add_scale(root, name)
    make.add_scale(root, "pair", extra="dynamic_batching { } instance_group { count: 2 kind: KIND_CPU }")
    (root / "both" / "1").mkdir(parents=True)
    (root / "both" / "config.pbtxt").write_text(ENSEMBLE)
    tensors = "input { name: 'x' data_type: TYPE_FP32 dims: [3] } output { name: 'y' data_type: TYPE_FP32 dims: [3] }"
    stuck = make.add_model(root, "stuck", f"backend: 'python' max_batch_size: 8 {tensors}", None)
    (stuck / "model.py").write_text(STUCK.format(flag=root.parent / "stuck"))
    return root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[process.Served]:
    names = ("first", "second", "both", "pair", "other", "stuck")
    log = repository.parent / "server.log"
    with triton.embedded(repository, names, log_path=log, start_timeout_s=60, exit_timeout_s=5) as running:
        yield running


@pytest.fixture
def watch(repository: Path, served: process.Served, tmp_path: Path) -> Watch:
    return Watch(
        http_url=served.server.http_url,
        repositories=[repository],
        known=lambda model, version: None,
        interval_s=0.1,
        directory=tmp_path,
        tell=lambda line: None,
        probe_timeout_s=2.0,
    )


def _status(folder: Path) -> dict:
    return json.loads((folder / "watch.json").read_text())


def test_a_killed_stub_is_healed_by_serve_and_nothing_else_is_touched(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "serve", repository, "--work-dir", tmp_path, "--watch",
               "--watch-interval-s", INTERVAL_S, "--model", "first", "--model", "other"]  # fmt: skip
    ports = process.find_ports("127.0.0.1", process.Ports())
    command += ["--http-port", ports.http, "--grpc-port", ports.grpc, "--metrics-port", ports.metrics]
    child = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    with child:
        try:
            printed = _read_until(child, "watching every")
            run_dir = next((tmp_path / "runs").iterdir())
            log = run_dir / "server.log"
            (server,) = [item for item in psutil.Process(child.pid).children() if item.name() == "tritonserver"]
            url = f"http://127.0.0.1:{ports.http}"
            _until(lambda: _status(run_dir)["rounds"] >= 1, "a first round")
            assert _status(run_dir)["failures"] == 0
            _stub(server.pid, "first").kill()
            _until(lambda: _status(run_dir)["heals"] == 1, "the heal")
            assert _infer(url, "first") == 200
            assert (_loads(log, "first"), _loads(log, "other")) == (2, 1)
            models = _status(run_dir)["models"]
            assert models["first"]["failures"] == models["first"]["heals"] == 1
            assert "is not healthy" in models["first"]["last_failure"]["text"]
            assert (models["other"]["failures"], models["other"]["heals"]) == (0, 0)
            assert models["other"]["probes"] >= 2
            segments = launch._shared_memory(server.pid)
            child.send_signal(signal.SIGINT)
            printed += child.stdout.read()
            assert child.wait(timeout=60) == 0
            assert len(segments) >= 3, "the dead one's, the healed one's and the other's"
            assert [item for item in segments if item.exists()] == []
        finally:
            child.kill()
    assert "unloading and loading it" in printed
    assert "first: answers again, after" in printed
    assert "  first: failures 1, heals 1\n" in printed
    (first, *_) = (run_dir / "watch.log").read_text().splitlines()
    assert first.split()[1:3] == ["first:", "version"]
    assert _status(run_dir)["heals"] == 1


def _read_until(child: subprocess.Popen, text: str) -> str:
    printed = ""
    for line in child.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(printed)


def test_a_server_that_dies_ends_the_watching_with_its_error(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "serve", repository, "--work-dir", tmp_path, "--watch",
               "--watch-interval-s", INTERVAL_S, "--model", "first", "--http-port", 0, "--grpc-port", 0,
               "--metrics-port", 0]  # fmt: skip
    child = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    with child:
        try:
            _read_until(child, "watching every")
            run_dir = next((tmp_path / "runs").iterdir())
            (server,) = [item for item in psutil.Process(child.pid).children() if item.name() == "tritonserver"]
            _stub(server.pid, "first").kill()
            _until(lambda: _status(run_dir)["heals"] == 1, "the heal")
            segments = launch._shared_memory(server.pid)
            rounds = _status(run_dir)["rounds"]
            _until(lambda: _status(run_dir)["rounds"] >= rounds + 10, "some looks at the server")
            os.kill(server.pid, signal.SIGKILL)
            printed = child.stdout.read()
            assert child.wait(timeout=30) == 5
            assert segments
            assert [item for item in segments if item.exists()] == [], "the healed one's too"
        finally:
            child.kill()
    assert "error: server: it ended on signal 9" in printed
    assert "watch: " in printed
    assert "heals" in printed
    assert "Traceback" not in printed


def test_a_dead_part_of_an_ensemble_is_healed_alone(served: process.Served, watch: Watch) -> None:
    log = served.server.log_path
    before = {name: _loads(log, name) for name in ("first", "second", "other")}
    _stub(served.server.pid, "second").kill()
    assert _infer(served.server.http_url, "both") == 500
    watch._round()
    assert _infer(served.server.http_url, "both") == 200
    after = {name: _loads(log, name) - before[name] for name in before}
    assert after == {"first": 0, "second": 1, "other": 0}
    assert {name: patient.heals for name, patient in watch._patients.items() if patient.failures} == {"second": 1}


def test_one_dead_instance_of_two_is_found(served: process.Served, watch: Watch) -> None:
    _stub(served.server.pid, "pair").kill()
    watch._round()
    assert watch._patients["pair"].heals == 1
    assert [_infer(served.server.http_url, "pair") for _ in range(4)] == [200] * 4


def test_a_model_that_hangs_is_given_up_after_the_deadline_and_backed_off(
    repository: Path, served: process.Served, watch: Watch
) -> None:
    flag = repository.parent / "stuck"
    told: list[str] = []
    watch.tell = told.append
    watch.probe_timeout_s = 1.0
    flag.touch()
    try:
        watch._round()
        patient = watch._patients["stuck"]
        assert (patient.failures, patient.heals, patient.streak, patient.rest) == (1, 0, 1, 0)
        watch._round()
        assert (patient.failures, patient.streak, patient.rest) == (2, 2, 1)
        probes = patient.probes
        watch._round()
        assert (patient.probes, patient.rest) == (probes, 0)
    finally:
        flag.unlink()
    watch._round()
    assert (patient.streak, patient.failures) == (0, 2)
    texts = [line.split(maxsplit=1)[1] for line in told]
    assert texts[0] == "stuck: version 1: no answer within 1 s; unloading and loading it"
    assert texts[1] == "stuck: still does not answer: version 1: no answer within 1 s"
    assert texts[-1] == "stuck: next look in 0.2 s"
    assert all(not other.failures for name, other in watch._patients.items() if name != "stuck")


def _control(served: process.Served, action: str, model: str) -> None:
    url = f"{served.server.http_url}/v2/repository/models/{model}/{action}"
    urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=10).close()


def test_a_failing_model_that_somebody_unloads_stays_unloaded(
    repository: Path, served: process.Served, watch: Watch
) -> None:
    flag = repository.parent / "stuck"
    watch.probe_timeout_s = 1.0
    loads = _loads(served.server.log_path, "stuck")
    flag.touch()
    try:
        watch._round()
        assert watch._patients["stuck"].failures == 1
        _control(served, "unload", "stuck")
        watch._round()
        flag.unlink()
        _until(lambda: _infer(served.server.http_url, "stuck") >= 400, "the unloading")
        for _ in range(3):
            watch._round()
        assert _loads(served.server.log_path, "stuck") == loads + 1, "by the watch, before somebody unloaded it"
        assert watch._patients["stuck"].failures == 1
    finally:
        flag.unlink(missing_ok=True)
        _control(served, "load", "stuck")
    watch._round()
    assert watch._patients["stuck"].origin == "zeros"


def test_a_server_that_hangs_is_told_and_when_it_answers_again(
    served: process.Served, watch: Watch, tmp_path: Path
) -> None:
    told: list[str] = []
    watch.tell = told.append
    watch.probe_timeout_s = 1.0
    server = psutil.Process(served.server.pid)
    server.suspend()
    try:
        assert not watch._round()
        watch._write_status()
        hung = _status(tmp_path)
    finally:
        server.resume()
    watch.probe_timeout_s = 10.0
    assert watch._round()
    watch._write_status()
    assert (hung["reachable"], hung["rounds_cut_short"]) == (False, 1)
    assert (_status(tmp_path)["reachable"], _status(tmp_path)["failures"]) == (True, 0)
    assert [line.split(maxsplit=1)[1].split(":")[0].split(";")[0] for line in told] == [
        "round cut short", "the server answers again",
    ]  # fmt: skip


def test_a_model_that_somebody_unloaded_stays_unloaded(served: process.Served, watch: Watch) -> None:
    watch._round()
    _control(served, "unload", "other")
    try:
        _until(lambda: _infer(served.server.http_url, "other") >= 400, "the unloading")
        watch._round()
        assert _infer(served.server.http_url, "other") >= 400
        assert watch._patients["other"].failures == 0
    finally:
        _control(served, "load", "other")
