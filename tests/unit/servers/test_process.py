"""Ports, the reading of a server's log, and which folders are models."""

from __future__ import annotations

import os
import socket
import time
from types import SimpleNamespace

import pytest

from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.servers import process
from pipeline.servers.process import Ports, ServerLog, find_ports, server_flags
from pipeline.servers.triton.models import models_of

HOST = "127.0.0.1"
# lines as tritonserver 2.51.0 writes them
LOG = r"""I1121 09:33:45.188745 7786 model_lifecycle.cc:472] "loading: corrupt:1"
E1121 09:33:45.186994 7786 server.cc:241] "CudaDriverHelper has not been initialized."
E1121 09:33:45.649922 7786 model_lifecycle.cc:642] "failed to load 'corrupt' version 1: Internal: RefusedError: onnx runtime error 7: Load model from /r/corrupt/1/model.onnx failed:Protobuf parsing failed.\n\nAt:\n  /b/onnxruntime/model.py(106): initialize\n"
E1121 09:33:45.690000 7786 model_lifecycle.cc:642] "failed to load 'bare' version 1: Internal: ModuleNotFoundError: No module named 'torch'\n\nAt:\n  /b/pytorch/model.py(6): <module>\n"
E1121 09:33:45.700000 7786 model_lifecycle.cc:642] "failed to load 'gpu' version 2: Invalid argument: instance group gpu_0 of model gpu has kind KIND_GPU but no GPUs are available"
E1121 09:41:08.184166 7786 model_repository_manager.cc:1460] "Poll failed for model directory 'badtext': failed to read text proto from /r/badtext/config.pbtxt"
E1121 09:41:12.731936 7786 model_repository_manager.cc:724] "failed to load model 'badver': at least one version must be available under the version policy of model 'badver'"
Error: Failed to initialize NVML
error: creating server: Internal - failed to load all models
"""  # noqa: E501


def test_free_ports_differ_and_named_ones_are_kept():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        named = probe.getsockname()[1]
    ports = find_ports(HOST, Ports(grpc=named))
    assert ports.grpc == named
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert min(ports.http, ports.metrics) > 0


def test_a_taken_port_is_refused_with_its_number_and_holder():
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(MissingError) as caught:
            find_ports(HOST, Ports(http=port))
    assert caught.value.exit_code == 3
    assert f"port {port}" in caught.value.what
    assert "Address already in use" in caught.value.found
    assert f"process {os.getpid()}" in caught.value.found


def test_one_port_for_two_services_is_refused():
    with pytest.raises(ConfigError, match="asked for twice"):
        find_ports(HOST, Ports(http=28000, metrics=28000))


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(MissingError, match="cannot listen on 192\\.0\\.2\\.1"):
        find_ports("192.0.2.1", Ports())


def test_load_failures_by_model_without_the_python_around_them(tmp_path):
    path = tmp_path / "server.log"
    log = ServerLog(path)
    path.write_text(LOG)
    assert log.load_failures() == {
        "corrupt": "onnx runtime error 7: Load model from /r/corrupt/1/model.onnx failed:Protobuf parsing failed.",
        "bare": "ModuleNotFoundError: No module named 'torch'",
        "gpu": "instance group gpu_0 of model gpu has kind KIND_GPU but no GPUs are available",
        "badtext": "failed to read text proto from /r/badtext/config.pbtxt",
        "badver": "at least one version must be available under the version policy of model 'badver'",
    }


def test_last_errors_leave_out_what_every_start_says(tmp_path):
    path = tmp_path / "server.log"
    log = ServerLog(path)
    path.write_text(LOG)
    lines = log.last_errors().splitlines()
    assert lines[-1] == "creating server: Internal - failed to load all models"
    assert len(lines) == 5
    assert "CudaDriverHelper" not in log.last_errors()


def test_a_log_without_errors_shows_its_last_lines(tmp_path):
    path = tmp_path / "server.log"
    log = ServerLog(path)
    assert log.last_errors() == ""
    path.write_text("one\ntwo\n")
    assert log.last_errors() == "one\ntwo"


def test_the_log_of_an_earlier_server_is_not_read_again(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(LOG)
    log = ServerLog(path)
    assert log.load_failures() == {}
    with path.open("a") as stream:
        stream.write('E1121 09:33:52.3 1 main.cc:245] "failed to start GRPC service: Unavailable - ')
        stream.write("Socket '127.0.0.1:1' already in use \"\n")
    assert log.port_taken()


def test_models_are_folders_with_a_config_and_a_numbered_version(tmp_path):
    for folder in ("b/1", "a/2", "no_config/1", "no_version/assets", ".git/1"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("b", "a", "no_version"):
        (tmp_path / folder / "config.pbtxt").write_text("")
    (tmp_path / "README.md").write_text("")
    assert models_of(tmp_path) == ("a", "b")


def test_a_repository_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such model repository"):
        models_of(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="holds no model"):
        models_of(tmp_path)


def test_the_server_loads_exactly_what_it_is_told():
    flags = server_flags(["a", "b"], "me", 0.2)
    assert [flag for flag in flags if flag.startswith("--load-model")] == ["--load-model=a", "--load-model=b"]
    assert {"--model-control-mode=explicit", "--disable-auto-complete-config", "--exit-on-error=true"} <= set(flags)
    assert "--exit-timeout-secs=1" in flags


@pytest.mark.parametrize("left_s", [60.0, -1.0])
def test_a_server_that_is_ready_only_after_its_time_is_too_late(tmp_path, monkeypatch, left_s):
    """The process that waits may have stood still meanwhile."""
    monkeypatch.setattr(process, "_next_step", lambda *_: "")
    path = tmp_path / "server.log"
    path.touch()
    child, launch = SimpleNamespace(poll=lambda: None), SimpleNamespace(start_timeout_s=5.0)
    arguments = (child, ServerLog(path), "http://x", launch, time.monotonic() + left_s)
    if left_s > 0:
        process._wait_until_ready(*arguments)
        return
    with pytest.raises(SmokeError, match="not ready within 5 s") as caught:
        process._wait_until_ready(*arguments)
    assert "ready only after that" in caught.value.found
