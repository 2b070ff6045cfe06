"""One TorchScript model behind three front ends, all on loopback with one thread for the model.

The embedded Triton; TorchServe, from a bare .mar; and Flask, Redis and a polling loop.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.base import command
from pipeline.servers.triton import embedded as triton
from tests.bench.http_load import Target
from tests.bench.timing import ROOT
from tests.models import make_models

SHAPE, CLASSES = (1, 28, 28), 10
_READY_S, _STOP_S = 120.0, 5.0
_BIN = Path(sys.executable).parent
_ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """A way to ask the model.

    Attributes:
        target: the request.
        scores: the body of an answer -> the model's scores.
        requests: at concurrency 1 and at 16, per round.
    """

    target: Target
    scores: Callable[[bytes], list[float]]
    requests: tuple[int, int]


@contextlib.contextmanager
def embedded_triton(model: Path, image: bytes, folder: Path) -> Iterator[dict[str, FrontEnd]]:
    """Dynamic batching without a delay; float32 in and out in Triton's binary form."""
    config = make_models.config_text(
        "pytorch_libtorch",
        inputs=[make_models.tensor_text("image", "float32", SHAPE)],
        outputs=[make_models.tensor_text("scores", "float32", [CLASSES])],
        max_batch_size=32,
        extra='dynamic_batching { } parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }',
    )
    make_models.add_model(folder / "repository", "convnet", config, model.read_bytes(), file="model.pt")
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image", "shape": [1, *SHAPE], "datatype": "FP32",
                    "parameters": {"binary_data_size": len(image)},
                }
            ],
            "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
        }
    ).encode()  # fmt: skip
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    log = folder / "triton.log"
    with triton.embedded(folder / "repository", ["convnet"], log_path=log, start_timeout_s=_READY_S) as running:
        port = int(running.server.http_url.rsplit(":", 1)[1])
        target = Target(port=port, path="/v2/models/convnet/infer", headers=headers, body=head + image)
        yield {"embedded Triton": FrontEnd(target=target, scores=_last_floats, requests=(500, 4000))}


def _last_floats(body: bytes) -> list[float]:
    return np.frombuffer(body[-4 * CLASSES :], np.float32).tolist()


@contextlib.contextmanager
def torchserve(model: Path, image: bytes, folder: Path) -> Iterator[dict[str, FrontEnd]]:
    """One worker without batching, and one with batches of up to 16 that wait 2 ms.

    Raises:
        LookupError: it, its archiver or Java is not installed.
    """
    _need("ts", "model_archiver", programs=("java",))
    store, (inference, management, metrics, grpc, grpc_management) = folder / "store", _ports(5)
    store.mkdir()
    settings = {"single": "minWorkers: 1\nmaxWorkers: 1\n"}
    settings["batched"] = settings["single"] + "batchSize: 16\nmaxBatchDelay: 2\n"
    for name, text in settings.items():
        config = folder / f"{name}.yaml"
        config.write_text(text)
        subprocess.run(
            [
                _BIN / "torch-model-archiver", "--model-name", name, "--version", "1", "--serialized-file", model,
                "--handler", Path(__file__).with_name("torchserve_handler.py"), "--config-file", config,
                "--export-path", store,
            ],
            env={**os.environ, "TMPDIR": str(folder)}, check=True, capture_output=True,
        )  # fmt: skip
    properties = folder / "config.properties"
    properties.write_text(
        f"inference_address=http://127.0.0.1:{inference}\nmanagement_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\ngrpc_inference_port={grpc}\n"
        f"grpc_management_port={grpc_management}\ndisable_token_authorization=true\ndisable_system_metrics=true\n"
    )
    quiet = folder / "log4j2.xml"  # by default it writes some 3 kB per request, at level DEBUG
    quiet.write_text('<Configuration><Loggers><Root level="error"/></Loggers></Configuration>')
    argv = [
        _BIN / "torchserve", "--start", "--foreground", "--ncs", "--ts-config", properties, "--model-store", store,
        "--log-config", quiet, "--models", "single.mar", "batched.mar",
    ]  # fmt: skip
    path = f"{_BIN}:/usr/local/bin:/usr/bin:/bin"
    with _child(argv, folder / "torchserve.log", {"PATH": path, "TMPDIR": str(folder)}, cwd=folder) as alive:
        for name in settings:
            _await(lambda name=name: _worker_ready(management, name), alive)
        yield {
            label: FrontEnd(
                target=_posted(inference, f"/predictions/{name}", image), scores=json.loads, requests=(300, 1500)
            )
            for label, name in (("TorchServe", "single"), ("TorchServe, batchSize 16, 2 ms", "batched"))
        }


def _worker_ready(port: int, model: str) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/models/{model}", timeout=5) as answer:
        workers = json.load(answer)[0]["workers"]
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)


@contextlib.contextmanager
def redis_queue(model: Path, image: bytes, folder: Path) -> Iterator[dict[str, FrontEnd]]:
    """Flask under gunicorn with a thread per request, Redis without persistence, and the model's loop.

    Raises:
        LookupError: one of them is not installed.
    """
    _need("flask", "redis", "gunicorn", programs=("redis-server",))
    web, database = _ports(2)
    server = ["redis-server", "--port", str(database), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    app = [
        _BIN / "gunicorn", "--bind", f"127.0.0.1:{web}", "--workers", "1", "--threads", "32", "--keep-alive", "60",
        "tests.bench.redis_queue.web:app",
    ]  # fmt: skip
    loop = [sys.executable, "-m", "tests.bench.redis_queue.model_loop", model, str(database)]
    with (
        _child(server, folder / "redis.log", {}, cwd=folder) as redis_alive,
        _child(app, folder / "web.log", {"REDIS_PORT": str(database)}, cwd=ROOT) as web_alive,
    ):
        _await(lambda: _listens(database), redis_alive)
        with _child(loop, folder / "loop.log", {}, cwd=ROOT) as loop_alive:
            _await(lambda: _listens(web), web_alive)
            target = _posted(web, "/predict", image)
            _await(lambda: _answers(target), loop_alive)
            yield {"Flask + Redis, polled every 0.25 s": FrontEnd(target=target, scores=json.loads, requests=(8, 160))}


def _posted(port: int, path: str, image: bytes) -> Target:
    return Target(port=port, path=path, headers={"Content-Type": "application/octet-stream"}, body=image)


def _need(*modules: str, programs: tuple[str, ...]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    missing += [name for name in programs if shutil.which(name) is None]
    if missing:
        raise LookupError(", ".join(missing))


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@contextlib.contextmanager
def _child(argv: list[str | Path], log: Path, env: dict[str, str], cwd: Path) -> Iterator[Callable[[], bool]]:
    """A process that is gone afterwards, with all that it started; yields a way to ask whether it still runs."""
    child = command.start([str(part) for part in argv], log_path=log, env={**os.environ, **_ENV, **env}, cwd=cwd)

    def alive() -> bool:
        if child.poll() is not None:
            raise RuntimeError(f"{argv[0]} ended with {child.returncode}:\n{log.read_text()[-2000:]}")
        return True

    try:
        yield alive
    finally:
        command.stop(child, grace_s=_STOP_S)


def _await(ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY_S
    while alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, urllib.error.URLError):
            if ready():
                return
        time.sleep(0.1)
    raise TimeoutError(f"not ready after {_READY_S:.0f} s")


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def _answers(target: Target) -> bool:
    url = f"http://127.0.0.1:{target.port}{target.path}"
    with urllib.request.urlopen(urllib.request.Request(url, data=target.body), timeout=30) as answer:
        return answer.status == 200
