"""The embedded server as a process: ready, alive, drained, dead; and what is said when it cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.servers import process
from pipeline.servers.process import Ports
from pipeline.servers.triton import container, probe
from pipeline.servers.triton import embedded as triton
from tests.models import make_models as make

GONE_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("serve") / "repository"
    tensor = make.tensor_text
    make.add_scale(root, "small")
    make.add_scale(root, "sacrifice")
    for name, dtype, dims in (("large", "float32", [3, 40, 40]), ("half", "float16", [3])):
        config = make.config_text(
            "onnxruntime_onnx", inputs=[tensor("x", dtype, dims)], outputs=[tensor("y", dtype, dims)]
        )
        make.add_model(root, name, config, make.scale_onnx(shape=("N", *dims), dtype=dtype))
    inputs = [tensor("x", "float32", [3]), tensor("times", "int64", [1])]
    config = make.config_text("pytorch_libtorch", inputs=inputs, outputs=[tensor("y", "float32", [3])])
    make.add_model(root, "slow", config, make.Loop())
    broken = make.config_text(
        "onnxruntime_onnx", inputs=[tensor("x", "float32", [4])], outputs=[tensor("y", "float32", [3])]
    )
    make.add_model(root, "broken", broken, make.scale_onnx())
    return root


@contextlib.contextmanager
def _serving(repository: Path, *models: str, folder: Path, **options) -> Iterator[process.Served]:
    with triton.embedded(
        repository, models, log_path=folder / "server.log", start_timeout_s=60, exit_timeout_s=10, **options
    ) as served:
        yield served


def _family(pid: int) -> list[psutil.Process]:
    """The server and its stubs."""
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


def _segments(pid: int) -> set[Path]:
    """Files in /dev/shm that the server shares with its stubs."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]) for line in maps if "/dev/shm/" in line}


def _await_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=GONE_TIMEOUT_S)
    assert not alive


def _infer(http_url: str, model: str, **tensors) -> dict:
    kinds = {"times": "INT64"}
    inputs = [
        {"name": name, "shape": [1, len(data)], "datatype": kinds.get(name, "FP32"), "data": data}
        for name, data in tensors.items()
    ]
    request = urllib.request.Request(
        f"{http_url}/v2/models/{model}/infer", data=json.dumps({"inputs": inputs}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_ready_server_answers_and_leaves_nothing_behind(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hush")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there: must not be asked for loopback
    with _serving(repository, "small", "large", "half", "sacrifice", folder=tmp_path) as served:
        server = served.server
        family, segments = _family(server.pid), _segments(server.pid)
        assert len(family) == 5
        assert len(segments) == 4
        sockets = [item for item in family[0].net_connections("tcp") if item.status == psutil.CONN_LISTEN]
        assert len(sockets) == 3
        assert {item.laddr.ip.removeprefix("::ffff:") for item in sockets} == {"127.0.0.1"}
        assert b"hush" not in Path(f"/proc/{server.pid}/environ").read_bytes()
        assert server.log_path.read_text().startswith("$ ")
        for model in ("small", "large", "half"):
            _run_curl_line(repository, model, server.http_url, tmp_path)
        monkeypatch.delenv("http_proxy")
        with urllib.request.urlopen(f"{server.metrics_url}/metrics", timeout=10) as answer:
            assert b"nv_inference_count" in answer.read()
        served.check_alive()
        _kill_a_stub(family, server.http_url)
        served.check_alive()
    _await_gone(family)
    assert [item for item in segments if item.exists()] == []
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".backends-")] == []


HOSTILE = "it's a [place] & more $HOME é; touch pwned #"


def test_a_path_that_a_shell_would_read_is_only_a_path(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, logs = tmp_path / HOSTILE / "repository", tmp_path / HOSTILE / "logs"
    shutil.copytree(repository / "small", root / "small")
    with _serving(root, "small", folder=logs) as served:
        _run_curl_line(root, "small", served.server.http_url, tmp_path)
        family = _family(served.server.pid)
    _await_gone(family)
    assert [path.name for path in tmp_path.iterdir()] == [HOSTILE]
    assert [path.name for path in logs.iterdir()] == ["server.log"]


@pytest.mark.parametrize(
    "field", ['default_model_filename: "model.onnx; touch pwned"', 'instance_group {name: "$(id)"}']
)
def test_a_name_that_a_shell_would_read_is_refused(repository, tmp_path, field):
    shutil.copytree(repository / "small", tmp_path / "root" / "small")
    with (tmp_path / "root" / "small" / "config.pbtxt").open("a") as file:
        file.write(f"{field}\n")
    with (
        pytest.raises(ConfigError, match="'small' cannot be served here"),
        _serving(tmp_path / "root", "small", folder=tmp_path),
    ):
        pass


def test_models_of_several_repositories_are_served_by_one_server(repository, tmp_path):
    beside = tmp_path / "beside"
    make.add_scale(beside, "other")
    with _serving(repository, "small", "other", folder=tmp_path, beside=[beside]) as served:
        for model, home in (("small", repository), ("other", beside)):
            _run_curl_line(home, model, served.server.http_url, tmp_path)


def _run_curl_line(repository: Path, model: str, http_url: str, folder: Path) -> None:
    line = triton.curl_line(repository, model, http_url)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=folder, timeout=30, check=True)
    if model == "half":  # an answer JSON cannot carry: a JSON header, then three float16 zeros
        answer = (folder / "answer.bin").read_bytes()
        assert json.loads(answer[:-6])["outputs"][0]["shape"] == [1, 3]
        assert answer[-6:] == bytes(6)
    else:
        (output,) = json.loads(done.stdout)["outputs"]
        assert set(output["data"]) == {0.0}


def _kill_a_stub(family: list[psutil.Process], http_url: str) -> None:
    """Triton goes on saying ready; only an inference tells."""
    (stub,) = [item for item in family[1:] if "/sacrifice/" in " ".join(item.cmdline())]
    stub.kill()
    while stub.status() != psutil.STATUS_ZOMBIE:  # nobody waits for it, which is how Triton misses it
        time.sleep(0.01)
    with urllib.request.urlopen(f"{http_url}/v2/models/sacrifice/ready", timeout=10) as answer:
        assert answer.status == 200
    with pytest.raises(SmokeError, match="process died") as caught:
        probe.infer_zeros(http_url, "sacrifice", "1", timeout_s=20)
    assert "is not healthy" in caught.value.found


def test_killed_server_is_noticed(repository, tmp_path):
    with _serving(repository, "small", folder=tmp_path) as served:
        family, segments = _family(served.server.pid), _segments(served.server.pid)
        os.kill(served.server.pid, signal.SIGKILL)
        os.waitid(os.P_PID, served.server.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(SmokeError, match="it ended on signal 9") as caught:
            served.check_alive()
        assert caught.value.log == str(tmp_path / "server.log")
    _await_gone(family)
    assert [item for item in segments if item.exists()] == []


def test_server_dies_with_its_parent(repository, tmp_path):
    script = f"""
import time
from pathlib import Path
from pipeline.servers.triton import embedded as triton
with triton.embedded(Path({str(repository)!r}), ["small"], log_path=Path({str(tmp_path / "s.log")!r}),
                     start_timeout_s=60) as served:
    print(served.server.pid, flush=True)
    time.sleep(600)
"""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    with parent:
        family = _family(int(parent.stdout.readline()))
        segments = _segments(family[0].pid)
        assert len(family) == 2
        parent.kill()
        _await_gone(family)
        for segment in segments:  # nobody is left who could remove them
            segment.unlink(missing_ok=True)


def test_request_in_flight_is_answered_when_the_server_stops(repository, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        with _serving(repository, "slow", folder=tmp_path) as served:
            started = time.monotonic()
            answer = pool.submit(_infer, served.server.http_url, "slow", x=[0.0, 1.0, 2.0], times=[250_000])
            time.sleep(0.3)
            assert not answer.done(), "the request was over before the server was told to stop"
        assert time.monotonic() - started < 15
        (output,) = answer.result()["outputs"]
        assert output["data"][0] == 0.0
    assert "Signal (15) received." in (tmp_path / "server.log").read_text()


def test_model_that_does_not_load_is_named_with_its_reason(repository, tmp_path):
    with pytest.raises(SmokeError) as caught, _serving(repository, "small", "broken", folder=tmp_path):
        pass
    assert caught.value.exit_code == 5
    assert caught.value.what == "server[broken]: model broken did not load"
    assert caught.value.found.startswith("model 'broken', tensor 'x': the model expects 2 dimensions (shape [-1,3])")
    assert caught.value.log == str(tmp_path / "server.log")


def test_model_that_is_not_in_the_repository(repository, tmp_path):
    with pytest.raises(SmokeError, match="model absent did not load"), _serving(repository, "absent", folder=tmp_path):
        pass


def test_taken_port_is_refused_before_anything_starts(repository, tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(MissingError, match=f"port {port}") as caught,
            _serving(repository, "small", folder=tmp_path, grpc_port=port),
        ):
            pass
    assert caught.value.exit_code == 3
    assert not (tmp_path / "server.log").exists()


def test_port_lost_between_finding_and_binding_is_replaced(repository, tmp_path, monkeypatch):
    found = []

    def find_ports(host: str, asked: Ports) -> Ports:
        ports = real(host, asked)
        found.append(Ports(http=ports.http, grpc=taken, metrics=ports.metrics) if not found else ports)
        return found[-1]

    real = process.find_ports
    monkeypatch.setattr(triton, "find_ports", find_ports)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        with _serving(repository, "small", folder=tmp_path) as served:
            assert len(found) == 2
            assert served.server.grpc_url == f"127.0.0.1:{found[1].grpc}"


def test_start_that_takes_too_long_is_stopped(repository, tmp_path):
    with (
        pytest.raises(SmokeError, match="not ready within 0 s"),
        triton.embedded(repository, ["small"], log_path=tmp_path / "s.log", start_timeout_s=0.2, exit_timeout_s=2),
    ):
        pass
    mine = psutil.Process().children(recursive=True)
    assert [item.name() for item in mine if "triton" in item.name()] == []


class _Stranger(BaseHTTPRequestHandler):
    """Something else on the port, or a model's refusal, by path."""

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        self._answer(200, {"name": "stranger", "inputs": inputs})

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        header = int(self.headers["Inference-Header-Content-Length"])
        body = self.rfile.read(length)
        assert json.loads(body[:header])["inputs"][0]["shape"] == [1, 3]
        assert body[header:] == bytes(12)
        self._answer(400, {"error": "zeros are of no use to me"})

    def log_message(self, *_: object) -> None:
        pass


def test_a_models_refusal_counts_as_an_answer_and_a_stranger_is_recognised():
    with HTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        thread = Thread(target=stranger.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{stranger.server_port}"
            assert probe.server_name(url, timeout_s=5) == "stranger"
            probe.infer_zeros(url, "any", "1", timeout_s=5)
        finally:
            stranger.shutdown()
            thread.join()
    with pytest.raises(probe.NotAnswered):
        probe.server_name(url, timeout_s=1)


def test_container_without_an_engine_gives_the_command_to_run_elsewhere(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    launch = container.launch(repository, ["small"], release="24.10", log_path=tmp_path / "log", start_timeout_s=5)
    with pytest.raises(MissingError, match="no Docker engine answers") as caught, launch:
        pass
    assert caught.value.exit_code == 3
    command = caught.value.hint.splitlines()[-1]
    assert command.startswith("docker run --rm --name=triton-")
    assert f"--volume={repository}:/models:ro nvcr.io/nvidia/tritonserver:24.10-py3 tritonserver" in command
    assert "--publish=127.0.0.1:8000:8000" in command
    assert "--load-model=small --disable-auto-complete-config --exit-on-error=true" in command
