"""TorchServe's launch: what is missing, taken or dead is told; the server itself runs in the integration tests."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.machine import environment
from pipeline.servers.process import PortTaken, ServerLog
from pipeline.servers.torchserve import api as torchserve_api
from pipeline.servers.torchserve import server as torchserve
from pipeline.servers.torchserve import store as torchserve_store
from pipeline.servers.torchserve.api import Registration, Worker
from pipeline.servers.torchserve.server import TorchServePorts

# lines as TorchServe 0.12.0 writes them
WORKER = "2026-11-21T16:05:24,088 [INFO ] W-9000-net_v.2_1.0-stdout MODEL_LOG - "
CRASH = f"""2026-11-21T16:05:21,242 [INFO ] main org.pytorch.serve.ModelServer - Loading initial models: net_v.2.mar
{WORKER}Torch worker started.
{WORKER}Backend worker process died.
{WORKER}Traceback (most recent call last):
{WORKER}  File "/v/ts/model_service_worker.py", line 301, in <module>
{WORKER}    worker.run_server()
2026-11-21T16:05:24,098 [INFO ] epollEventLoopGroup-5-1 org.pytorch.serve.wlm.WorkerThread - 9000 Worker disconnected.
{WORKER}                             ^^^^^^^^^^^^^^^^^^^^
{WORKER}  File "/t/models/c2b0/torchserve_handler.py", line 19, in <module>
{WORKER}    import no_such_module
{WORKER}ModuleNotFoundError: No module named 'no_such_module'
{WORKER}
{WORKER}During handling of the above exception, another exception occurred:
{WORKER}
{WORKER}Traceback (most recent call last):
{WORKER}  File "/v/ts/model_loader.py", line 155, in _load_handler_file
{WORKER}ModuleNotFoundError: No module named 'ts.torch_handler.torchserve_handler'
2026-11-21T16:05:24,155 [INFO ] W-9000-net_v.2_1.0 org.pytorch.serve.wlm.WorkerThread - Retry worker: 9000 in 1 seconds.
"""
STDERR = WORKER.replace("stdout", "stderr").replace("INFO", "WARN")
NO_YAML = f"""{STDERR}Traceback (most recent call last):
{STDERR}  File "/v/ts/utils/util.py", line 14, in <module>
{STDERR}    import yaml
{STDERR}ModuleNotFoundError: No module named 'yaml'
2026-11-21T16:05:24,155 [INFO ] W-9000-net_1.0 org.pytorch.serve.wlm.WorkerThread - Retry worker: 9000 in 1 seconds.
"""


class Child:
    """A process that is running, or has ended with a status."""

    pid = 1

    def __init__(self, status: int | None = None) -> None:
        self.status = status

    def poll(self) -> int | None:
        return self.status


def _log(folder: Path, text: str) -> ServerLog:
    log = ServerLog(folder / "log")
    log.path.write_text(text)
    return log


def _starting(folder: Path, text: str, status: int | None = None) -> None:
    child: Any = Child(status)
    torchserve._check_starting(child, _log(folder, text))


def _store(folder: Path) -> Path:
    (folder / "model_store").mkdir()
    (folder / "config.properties").write_text(torchserve_store.properties("net"))
    return folder


@pytest.mark.parametrize(
    ("text", "model", "found"),
    [
        (
            CRASH,
            "net_v.2",
            "/t/models/c2b0/torchserve_handler.py, line 19\nModuleNotFoundError: No module named 'no_such_module'\n"
            "ModuleNotFoundError: No module named 'ts.torch_handler.torchserve_handler'",
        ),
        (NO_YAML, "net_v.2", "/v/ts/utils/util.py, line 14\nModuleNotFoundError: No module named 'yaml'"),
    ],
)
def test_a_worker_that_dies_at_import_is_told_with_its_own_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, model: str, found: str
) -> None:
    monkeypatch.setattr(torchserve, "_SETTLE_S", 0.0)
    with pytest.raises(SmokeError) as caught:
        _starting(tmp_path, text)
    assert caught.value.what == f"torchserve[{model}]: its worker died while it started"
    assert caught.value.found == found
    assert caught.value.log == str(tmp_path / "log")


def test_a_server_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(SmokeError, match="ended with status 1") as caught:
        _starting(tmp_path, "one\nInvalid binding address\n", 1)
    assert caught.value.found == "one\nInvalid binding address"
    _starting(tmp_path, "Loading initial models", None)  # still starting: nothing to say


def test_an_old_java_is_named_with_what_to_install(tmp_path: Path) -> None:
    line = "java.lang.UnsupportedClassVersionError: org/pytorch/serve/ModelServer has been compiled by a more recent"
    with pytest.raises(MissingError, match="too old") as caught:
        _starting(tmp_path, line, 1)
    assert caught.value.hint == "apt-get install openjdk-17-jre-headless"


def test_a_port_lost_before_the_server_bound_it_is_no_failure_yet(tmp_path: Path) -> None:
    text = "java.io.IOException: Failed to bind to address: http://127.0.0.1:18080"
    with pytest.raises(PortTaken):
        _starting(tmp_path, text, 1)


def test_a_named_port_that_is_taken_is_refused_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        launch = torchserve.launched(
            _store(tmp_path), ["net"], log_path=tmp_path / "log", ports=TorchServePorts(grpc_inference=port),
            start_timeout_s=1,
        )  # fmt: skip
        with pytest.raises(MissingError, match=f"cannot listen on 127.0.0.1 port {port}"), launch:
            pass


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        ("java", "Java: none; apt-get install openjdk-17-jre-headless"),
        ("torchserve", "torchserve not installed; pip install 'model-repository-pipeline[torchserve]'"),
        ("pyyaml", "pyyaml not installed; pip install 'model-repository-pipeline[torchserve]'"),
    ],
)
def test_what_this_machine_lacks_is_told_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, told: str
) -> None:
    found = environment.probe(tmp_path)
    lacking = (
        replace(found, java=None)
        if absent == "java"
        else replace(found, distributions={**found.distributions, absent: "absent"})
    )
    monkeypatch.setattr(environment, "probe", lambda _: lacking)
    with (
        pytest.raises(MissingError) as caught,
        torchserve.launched(_store(tmp_path), ["net"], log_path=tmp_path / "log", start_timeout_s=1),
    ):
        pass
    assert caught.value.exit_code == 3
    assert told in caught.value.found


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="no model store"),
        torchserve.launched(tmp_path, ["net"], log_path=tmp_path / "log", start_timeout_s=1),
    ):
        pass


def test_only_addresses_are_replaced_in_the_emitted_settings() -> None:
    text = torchserve_store.properties("net")
    made = torchserve._on_ports(text, TorchServePorts(inference=1, management=2, metrics=3, grpc_inference=4))
    kept = [line for line in text.splitlines() if "808" not in line and "707" not in line]
    assert made.splitlines()[: len(kept)] == kept
    assert made.splitlines()[len(kept) :] == [
        "inference_address=http://127.0.0.1:1",
        "management_address=http://127.0.0.1:2",
        "metrics_address=http://127.0.0.1:3",
        "grpc_inference_port=4",
        "grpc_management_port=0",
    ]


def test_secrets_of_the_environment_are_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    monkeypatch.setenv("TS_CONFIG_FILE", "/another.properties")
    found = torchserve._environment(tmp_path)
    assert not {"API_TOKEN", "TS_CONFIG_FILE", "PYTHONPATH"} & found.keys()
    assert found["TMPDIR"] == found["LOG_LOCATION"] == found["METRICS_LOCATION"] == str(tmp_path)


@pytest.mark.parametrize(
    ("states", "ready"), [(["READY", "READY"], True), (["READY"], False), (["READY", "UNLOADING"], False), ([], False)]
)
def test_ready_means_every_worker(states: list[str], ready: bool) -> None:
    workers = tuple(Worker(pid=number, status=state) for number, state in enumerate(states))
    assert Registration(batch_size=1, max_batch_delay_ms=0, min_workers=2, workers=workers).ready is ready


def test_waiting_ends_at_the_deadline_with_what_was_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Registration:
        raise torchserve_api.NotAnswered("404 Not Found")

    monkeypatch.setattr(torchserve_api, "describe", refused)
    child: subprocess.Popen[bytes] = SimpleNamespace(poll=lambda: None)  # type: ignore[assignment]
    with pytest.raises(SmokeError, match=r"torchserve\[net\]: not ready within 0 s") as caught:
        torchserve._wait_until_ready(child, _log(tmp_path, "a line"), "http://x", ["net"], 0.0)
    assert caught.value.found == "404 Not Found\na line"
