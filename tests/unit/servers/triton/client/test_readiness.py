"""What a running server says of models that it was, or was not, asked for."""

from __future__ import annotations

import pytest

from pipeline.base.errors import SmokeError
from pipeline.servers.triton.client import readiness
from pipeline.servers.triton.client.messages import IndexRow

NO_GPU = "Invalid argument: instance group m_trt_0 of model m_trt has kind KIND_GPU but no GPUs are available"


def index(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str]) -> None:
    """The index of a server with another model too."""
    found = [IndexRow(name="m_onnx", version="1", state="UNAVAILABLE", reason="other"), *(
        IndexRow(name="m_trt", version=version, state=state, reason=reason) for version, state, reason in rows
    )]  # fmt: skip
    monkeypatch.setattr(readiness, "index", lambda url: found)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "it is not in that server's repository"),
        ([("", "", "")], "it is in that server's repository, and not loaded"),
        ([("1", "UNAVAILABLE", "unloaded")], "version 1 is UNAVAILABLE unloaded"),
        ([("1", "UNAVAILABLE", "")], "version 1 is UNAVAILABLE"),
        ([("1", "LOADING", "")], "version 1 is LOADING"),
        ([("1", "READY", "")], ""),
        ([("1", "UNAVAILABLE", "unloaded"), ("2", "READY", "")], ""),
    ],
)
def test_a_model_that_a_server_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str]], reason: str
) -> None:
    index(monkeypatch, *rows)
    assert readiness.not_loaded("http://far:8000", "m_trt") == reason


def test_a_model_that_a_server_failed_to_load_is_an_error_with_the_server_s_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index(monkeypatch, ("1", "UNAVAILABLE", "unloaded"), ("2", "UNAVAILABLE", NO_GPU))
    with pytest.raises(SmokeError, match=r"smoke\[m_trt\]: the server at http://far:8000 could not load it") as caught:
        readiness.not_loaded("http://far:8000", "m_trt")
    assert caught.value.found == f"version 2: {NO_GPU}"
