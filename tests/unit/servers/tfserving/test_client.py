"""TensorFlow Serving on this machine is asked past every proxy of the environment."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import grpc as library
import numpy as np
import pytest

from pipeline.base import network
from pipeline.base.values import RunningServer
from pipeline.formats.saved_model import process
from pipeline.servers.tfserving import client as tfserving
from pipeline.servers.tfserving import server as serving

URL = "http://127.0.0.1:8501"


def test_rest_is_asked_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def opened(url: str, body: bytes | None = None, **_: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(json.dumps({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}).encode())

    monkeypatch.setattr(network.opener, "open", opened)
    assert serving._state(URL, "m") == "AVAILABLE"
    assert "model_version_status" in tfserving._asked(f"{URL}/x", None)
    assert asked == [f"{URL}/v1/models/m", f"{URL}/x"]


def test_grpc_is_asked_past_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    child = SimpleNamespace(call=lambda *_: ({}, {"request": np.zeros(1, np.uint8)}))
    monkeypatch.setattr(process, "shared", lambda: child)
    seen: list[tuple[str, Any]] = []

    def channel(url: str, options: list[tuple[str, Any]]) -> Any:
        seen.extend(options)
        raise ConnectionError

    monkeypatch.setattr(library, "insecure_channel", channel)
    server = RunningServer(http_url=URL, grpc_url="127.0.0.1:8500", metrics_url="", pid=0, log_path=tmp_path)
    with pytest.raises(ConnectionError):
        tfserving.grpc(server, "m", SimpleNamespace(), {}, {})
    assert ("grpc.enable_http_proxy", 0) in seen
