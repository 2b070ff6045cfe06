"""The command line that launches TensorFlow Serving, and when the server counts as ready."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import MissingError, SmokeError
from pipeline.servers.process import Ports, ServerLog
from pipeline.servers.tfserving import server as tfserving


def test_the_command_line() -> None:
    assert tfserving.docker_run("/srv/tree", name="n", ports=Ports(http=1, grpc=2)) == [
        "docker",
        "run",
        "--rm",
        "--name=n",
        "--publish=127.0.0.1:2:8500",
        "--publish=127.0.0.1:1:8501",
        "--volume=/srv/tree:/models:ro",
        "tensorflow/serving:2.19.1",
        "--model_config_file=/models/models.config",
    ]
    unnamed = tfserving.docker_run("/srv/tree", name="", ports=Ports(http=1, grpc=2))
    assert not any(word.startswith("--name") for word in unnamed)


def test_without_docker_it_says_what_to_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(argv: list[str], **_: Any) -> str:
        raise MissingError("cannot run docker", found="no such file")

    monkeypatch.setattr("pipeline.base.command.run", absent)
    launch = tfserving.launch(tmp_path, "m", log_path=tmp_path / "log", start_timeout_s=1)
    with pytest.raises(MissingError, match="no Docker engine") as caught, launch:
        pass
    assert f"--volume={tmp_path}:/models:ro" in caught.value.hint
    assert "8501:8501" in caught.value.hint


def _await(folder: Path, *, status: int | None, timeout_s: float) -> None:
    log = ServerLog(folder / "log")
    log.path.write_text("no such model")
    child: Any = SimpleNamespace(poll=lambda: status)
    tfserving._await(child, "http://x", "net", log, timeout_s)


def test_a_server_is_ready_when_the_newest_version_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["URLError: refused", "LOADING", "AVAILABLE"])
    monkeypatch.setattr(tfserving, "_state", lambda url, model: next(states))
    _await(tmp_path, status=None, timeout_s=30)
    assert not list(states)


@pytest.mark.parametrize(("status", "message"), [(1, "the server ended"), (None, "not available within 0 s")])
def test_a_server_that_ends_or_never_gets_ready_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, message: str
) -> None:
    monkeypatch.setattr(tfserving, "_state", lambda url, model: "LOADING bad file")
    with pytest.raises(SmokeError, match=message) as caught:
        _await(tmp_path, status=status, timeout_s=0.3)
    assert caught.value.found == "LOADING bad file\nno such model"
