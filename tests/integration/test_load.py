"""`load` against the real server: every request accounted for, and an answer given to the wrong one caught."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from PIL import Image

from pipeline.base.errors import ConfigError, SmokeError
from pipeline.load import report
from pipeline.load.run import Order, Result, run
from pipeline.servers import process
from pipeline.servers.triton import embedded as triton
from pipeline.servers.triton import probe
from tests.integration.conftest import pipeline
from tests.models import make_models as make

ROOT = Path(__file__).parents[2]
PROTOCOLS = ("http", "grpc", "shm")

PYTHON = """
import json, time, zlib
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        responses = [self.answer(pb.get_input_tensor_by_name(item, "x").as_numpy()) for item in requests]
        return responses[1:] + responses[:1] if {mixes} else responses

    def answer(self, x):
        if x.dtype == object and not x[0, 0].startswith({magic}):
            raise pb.TritonModelException("no image")
        {body}
"""
MAGIC = r'(b"\x89PNG", b"\xff\xd8", b"RIFF")'
DOUBLE = 'return pb.InferenceResponse([pb.Tensor("y", x * 2)])'
SLOW = "time.sleep(0.05); " + DOUBLE
RANKED = """rows = [[{"label": str(zlib.crc32(item[0])), "probability": 0.75}] for item in x]
        texts = np.array([[json.dumps(row).encode()] for row in rows], np.object_)
        return pb.InferenceResponse([pb.Tensor("y", texts)])"""


def _add_python(repository: Path, name: str, body: str, *, mixes: bool = False, kind: str = "TYPE_FP32") -> None:
    dims = "[1]" if kind == "TYPE_STRING" else "[3]"
    config = (
        f"backend: 'python' max_batch_size: 8 dynamic_batching {{ max_queue_delay_microseconds: 2000 }} "
        f"input {{ name: 'x' data_type: {kind} dims: {dims} }} output {{ name: 'y' data_type: {kind} dims: {dims} }}"
    )
    folder = make.add_model(repository, name, config, None)
    (folder / "model.py").write_text(
        PYTHON.replace("{mixes}", str(mixes)).replace("{body}", body).replace("{magic}", MAGIC)
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("load") / "repository"
    make.add_scale(root, "right")
    _add_python(root, "mixer", DOUBLE, mixes=True)
    _add_python(root, "slow", SLOW)
    _add_python(root, "ranked", RANKED, kind="TYPE_STRING")
    tensor = make.tensor_text
    config = make.config_text(
        "onnxruntime_onnx", inputs=[tensor("i", "int64", [1])], outputs=[tensor("y", "float32", [2])]
    )
    make.add_model(root, "gather", config, make.gather_onnx())
    return root


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[process.Served]:
    log = repository.parent / "server.log"
    names = ("right", "mixer", "slow", "ranked", "gather")
    with triton.embedded(repository, names, log_path=log, start_timeout_s=60, exit_timeout_s=5) as running:
        yield running


def _load(
    served: process.Served,
    model: str,
    protocol: str = "http",
    *,
    progress: Callable[[str, float | None], None] = lambda text, share: None,
    **options: object,
) -> Result:
    url = served.server.http_url if protocol == "http" else served.server.grpc_url
    given = {"requests": 100, "concurrency": 8, "rate": None, **options}
    return run(Order(model=model, protocol=protocol, url=url, **given), progress)


def _kills(process_: psutil.Process, *, after: int) -> Callable[[str, float | None], None]:
    """A progress callback that kills a process once so many requests are done."""

    def progress(text: str, share: float | None) -> None:
        done = re.search(r"(\d+) of \d+ done", text)
        if done and int(done[1]) >= after and process_.is_running():
            process_.kill()

    return progress


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_request_gets_its_own_answer(served: process.Served, protocol: str) -> None:
    row = report.to_json(_load(served, "right", protocol, requests=300, concurrency=16))
    assert (row["sent"], row["ok"], row["failed"], row["mismatched"]) == (300, 300, 0, 0)
    assert row["inputs"] == {"given": 16, "distinct": 16}
    assert sum(bucket["count"] for bucket in row["histogram"]) == 300
    latency = row["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert row["throughput_rps"] == pytest.approx(300 / row["duration_s"])
    assert not list(Path("/dev/shm").glob(f"smoke-{os.getpid()}-*"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_that_mixes_answers_up_is_caught(served: process.Served, protocol: str) -> None:
    result = _load(served, "mixer", protocol)
    row = report.to_json(result)
    assert row["mismatched"] == row["failed"] > 20
    assert row["ok"] + row["failed"] == row["sent"] == 100
    assert [error["text"] for error in row["errors"]] == ["answered with the result of another request"]
    assert report.exit_code(result) == 5


def test_the_open_loop_counts_from_when_a_request_was_due(served: process.Served) -> None:
    """A server that takes 50 ms for each, asked 40 times a second by one worker: each waits longer than the last."""
    result = _load(served, "slow", rate=40.0, requests=20, concurrency=1)
    row = report.to_json(result)
    assert (row["ok"], row["failed"]) == (20, 0)
    assert row["latency_ms"]["max"] > 450  # 20 answers take 1 s, and the last was due after 475 ms
    assert min(outcome.done_s - outcome.sent_s for outcome in result.outcomes) < 0.1
    assert row["sent_late"]["count"] >= 15
    paced = report.to_json(_load(served, "right", rate=50.0, requests=25, concurrency=4))
    assert 0.47 < paced["duration_s"] < 1.0


def test_refused_requests_are_counted_with_their_text(served: process.Served, tmp_path: Path) -> None:
    """The dead stub of a model refuses everything; its text is told once, with its count."""
    rows = np.arange(4, dtype=np.int64).reshape(4, 1)
    np.savez(tmp_path / "rows.npz", i=rows)
    stub = next(
        child for child in psutil.Process(served.server.pid).children() if "/gather/" in " ".join(child.cmdline())
    )
    result = _load(
        served, "gather", progress=_kills(stub, after=3), arrays=[tmp_path / "rows.npz"], rate=10.0, requests=8
    )
    row = report.to_json(result)
    assert row["inputs"] == {"given": 4, "distinct": 4}
    assert row["sent"] == 8 == row["ok"] + row["failed"]
    assert 3 <= row["ok"] < 8
    assert any("is not healthy" in error["text"] for error in row["errors"])
    assert sum(error["count"] for error in row["errors"]) == row["failed"]
    assert row["mismatched"] == 0


def test_image_files_go_as_they_are_to_a_model_of_bytes(served: process.Served, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.png", "two.jpg", "three.webp", "again.png")]
    for file, colour in zip(files, (10, 20, 30, 10), strict=True):
        Image.new("L", (4, 4), colour).save(file)
    for protocol in PROTOCOLS:
        result = _load(served, "ranked", protocol, images=files, requests=60)
        row = report.to_json(result)
        assert (row["ok"], row["failed"]) == (60, 0)
        assert row["inputs"] == {"given": 4, "distinct": 3}
        assert row["notes"] == ["1 of 4 inputs were left out: their answers cannot be told from another's"]


def test_a_server_killed_midway_leaves_no_request_unaccounted(repository: Path, tmp_path: Path) -> None:
    for protocol in PROTOCOLS:
        log = tmp_path / f"{protocol}.log"
        with triton.embedded(repository, ["right"], log_path=log, start_timeout_s=60) as served:
            progress = _kills(psutil.Process(served.server.pid), after=10)
            result = _load(served, "right", protocol, progress=progress, requests=100, rate=100.0)
        row = report.to_json(result)
        assert row["sent"] == 100 == row["ok"] + row["failed"]
        assert row["ok"] >= 10
        assert row["failed"] >= 20
        assert row["mismatched"] == 0
        assert any("no connection" in error["text"] for error in row["errors"]), row["errors"]


def test_ctrl_c_reports_what_was_sent(served: process.Served) -> None:
    for stopped in (False, True):
        answered = probe.answered(served.server.http_url, "right", "1", timeout_s=5)
        command = [sys.executable, "-m", "pipeline", "load", "right", "--url", served.server.http_url, "--rate", "50",
                   "--requests", "100000", "--concurrency", "4", "--json"]  # fmt: skip
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                                 env={**os.environ, "PYTHONFAULTHANDLER": "1"})  # fmt: skip
        server = psutil.Process(served.server.pid)
        try:
            while probe.answered(served.server.http_url, "right", "1", timeout_s=5) < answered + 30:
                time.sleep(0.05)
            if stopped:
                server.suspend()
                time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            printed, errors = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGABRT)  # says where every thread is
            pytest.fail(f"it did not end: {child.communicate(timeout=30)[1]}")
        finally:
            server.resume()
            child.kill()
        row = json.loads(printed)
        assert row["interrupted"] is True
        assert 0 < row["sent"] < 100_000
        assert row["sent"] == row["ok"] + row["failed"]
        assert "Traceback" not in errors
        if stopped:
            assert row["errors"] == [{"text": "interrupted before the answer came", "count": row["failed"]}]
            assert row["failed"] > 0
        assert child.returncode == (5 if row["failed"] else 130)


def test_ctrl_c_gives_all_shared_memory_back(served: process.Served) -> None:
    """With a server that answers; and with one that hangs, the result comes out however often one presses it."""
    for stopped in (False, True):
        answered = probe.answered(served.server.http_url, "right", "1", timeout_s=5)
        command = [sys.executable, "-m", "pipeline", "load", "right", "--url", served.server.http_url,
                   "--grpc-url", served.server.grpc_url, "--protocol", "shm", "--rate", "50",
                   "--requests", "100000", "--concurrency", "4", "--json"]  # fmt: skip
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        server = psutil.Process(served.server.pid)
        try:
            while probe.answered(served.server.http_url, "right", "1", timeout_s=5) < answered + 30:
                time.sleep(0.05)
            assert len(_regions(served)) == 5, "the inputs', and one for each worker"
            if stopped:
                server.suspend()
                time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            for _ in range(5 if stopped else 0):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=0.7)
                child.send_signal(signal.SIGINT)
            printed, errors = child.communicate(timeout=30)
        finally:
            server.resume()
            child.kill()
        row = json.loads(printed)
        assert row["interrupted"] is True
        assert row["sent"] == row["ok"] + row["failed"]
        assert "Traceback" not in errors
        assert child.returncode == (5 if row["failed"] else 130)
        if stopped:
            assert row["failed"] > 0
        else:
            assert _regions(served) == []


def _regions(served: process.Served) -> list[str]:
    """Shared memory that the server has been told of."""
    with contextlib.closing(triton_grpc.InferenceServerClient(served.server.grpc_url)) as client:
        return sorted(client.get_system_shared_memory_status().regions)


def test_the_open_loop_of_the_manual_accounts_for_all_500(served: process.Served) -> None:
    """500 requests at fixed times, as with ``--rate 20``; faster here, so that it takes seconds."""
    result = _load(served, "right", requests=500, concurrency=32, rate=200.0)
    row = report.to_json(result)
    assert (row["sent"], row["ok"], row["failed"], row["mismatched"]) == (500, 500, 0, 0)
    due = np.array([outcome.due_s for outcome in result.outcomes])
    assert due - due[0] == pytest.approx(np.arange(500) / 200)
    assert all(outcome.due_s <= outcome.sent_s <= outcome.done_s for outcome in result.outcomes)
    assert sum(bucket["count"] for bucket in row["histogram"]) == 500


def test_what_is_no_triton_is_told_by_load_and_predict(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{server.server_port}"
        for words in (["load", "right"], ["predict", "right", "--input", tmp_path / "x.npy"]):
            done = pipeline(*words, "--url", url)
            assert done.returncode == 5, done.stdout
            assert f"{words[0]}[right]: what answers at http://{url} is no Triton" in done.stdout
            assert "try:" in done.stdout
        server.shutdown()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").is_file(), reason="this machine has no IPv6")
def test_a_server_at_an_ipv6_address(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with triton.embedded(repository, ["right"], host="::1", log_path=log, start_timeout_s=60) as running:
        for protocol in PROTOCOLS:
            done = pipeline("load", "right", "--url", running.server.http_url.removeprefix("http://"), "--grpc-url",
                            running.server.grpc_url, "--protocol", protocol, "--requests", "20")  # fmt: skip
            assert done.returncode == 0, done.stdout
            assert "OK 20  FAILED 0" in done.stdout


def test_the_command_line_prints_counts_and_a_histogram(served: process.Served) -> None:
    done = pipeline("load", "right", "--url", served.server.http_url, "--grpc-url", served.server.grpc_url,
                    "--protocol", "grpc", "--requests", "50", "--concurrency", "4")  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "OK 50  FAILED 0  of 50 sent, 0 mismatched" in done.stdout
    assert "concurrency 4, 16 different inputs" in done.stdout
    assert "█" in done.stdout


def test_what_cannot_be_loaded_is_said_before_anything_is_sent(served: process.Served, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model absent at") as caught:
        _load(served, "absent")
    assert "right" in caught.value.found
    with pytest.raises(SmokeError, match="the server refused input made up 0, asked alone") as refused:
        _load(served, "ranked")
    assert refused.value.hint.startswith("give it inputs")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="input: not a readable array file"):
        _load(served, "right", arrays=[tmp_path / "broken.npz"])
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="input x is no image"):
        _load(served, "right", images=[tmp_path / "a.png"])
    with pytest.raises(ConfigError, match="shared memory needs the server on this machine"):
        run(Order(model="right", protocol="shm", url="10.0.0.1:1", requests=1, concurrency=1, rate=None), print)
    with pytest.raises(SmokeError, match=r"no answer from http://127\.0\.0\.1:9"):
        run(
            Order(model="right", protocol="http", url="http://127.0.0.1:9", requests=1, concurrency=1, rate=None), print
        )
