"""A tritonserver's flags, the reading of its log, and when it is too late."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from pipeline.base.errors import SmokeError
from pipeline.servers.triton import launch as launching
from pipeline.servers.triton.launch import TritonLog, server_flags

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


def test_load_failures_by_model_without_the_python_around_them(tmp_path):
    path = tmp_path / "server.log"
    log = TritonLog(path)
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
    log = TritonLog(path)
    path.write_text(LOG)
    lines = log.last_errors().splitlines()
    assert lines[-1] == "creating server: Internal - failed to load all models"
    assert len(lines) == 5
    assert "CudaDriverHelper" not in log.last_errors()


def test_a_log_without_errors_shows_its_last_lines(tmp_path):
    path = tmp_path / "server.log"
    log = TritonLog(path)
    assert log.last_errors() == ""
    path.write_text("one\ntwo\n")
    assert log.last_errors() == "one\ntwo"


def test_the_log_of_an_earlier_server_is_not_read_again(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(LOG)
    log = TritonLog(path)
    assert log.load_failures() == {}
    with path.open("a") as stream:
        stream.write('E1121 09:33:52.3 1 main.cc:245] "failed to start GRPC service: Unavailable - ')
        stream.write("Socket '127.0.0.1:1' already in use \"\n")
    assert log.port_taken()


def test_the_server_loads_exactly_what_it_is_told():
    flags = server_flags(["a", "b"], "me", 0.2)
    assert [flag for flag in flags if flag.startswith("--load-model")] == ["--load-model=a", "--load-model=b"]
    assert {"--model-control-mode=explicit", "--disable-auto-complete-config", "--exit-on-error=true"} <= set(flags)
    assert "--exit-timeout-secs=1" in flags


@pytest.mark.parametrize("left_s", [60.0, -1.0])
def test_a_server_that_is_ready_only_after_its_time_is_too_late(tmp_path, monkeypatch, left_s):
    """The process that waits may have stood still meanwhile."""
    monkeypatch.setattr(launching, "_next_step", lambda *_: "")
    path = tmp_path / "server.log"
    path.touch()
    child, launch = SimpleNamespace(poll=lambda: None), SimpleNamespace(start_timeout_s=5.0)
    arguments = (child, TritonLog(path), "http://x", launch, time.monotonic() + left_s)
    if left_s > 0:
        launching._wait_until_ready(*arguments)
        return
    with pytest.raises(SmokeError, match="not ready within 5 s") as caught:
        launching._wait_until_ready(*arguments)
    assert "ready only after that" in caught.value.found
