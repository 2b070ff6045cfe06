"""Which addresses of a server are taken, and as what; and that no proxy is asked for what is on this machine."""

from __future__ import annotations

import urllib.request

import pytest

from pipeline.base import network
from pipeline.base.errors import ConfigError
from pipeline.cli.commands import server_at


@pytest.mark.parametrize(
    ("text", "http", "grpc"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8001"),
        ("[::1]:8000", "http://[::1]:8000", "[::1]:8001"),
        ("http://[::1]:9", "http://[::1]:9", "[::1]:8001"),
        ("https://gate.example/triton", "https://gate.example/triton", "gate.example:8001"),
        ("http://host", "http://host", "host:8001"),
        ("https://host:8443/a:b", "https://host:8443/a:b", "host:8001"),
    ],
)
def test_addresses(text: str, http: str, grpc: str) -> None:
    server = server_at(text, None)
    assert (server.http_url, server.grpc_url) == (http, grpc)


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:abc", "127.0.0.1:", "[::1:8000", "::1:8000", "", "http://", "http://:80", "http://h:", "ftp://x:1",
     "127.0.0.1", "h:70000", "h:0", "a b:80", "user@h:80"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="--url: not the address of a server") as caught:
        server_at(text, None)
    assert caught.value.found == repr(text)
    assert "[::1]:8000" in caught.value.hint


@pytest.mark.parametrize("text", ["h", "h:", "h:x", "http://h:1", "", "[::1:1"])
def test_the_same_for_grpc(text: str) -> None:
    assert server_at("h:1", "[::1]:7").grpc_url == "[::1]:7"
    with pytest.raises(ConfigError, match="--grpc-url: not the address of a server"):
        server_at("h:1", text)


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not [item for item in network.opener.handlers if isinstance(item, urllib.request.ProxyHandler)]
    assert network.GRPC_WITHOUT_PROXY == ("grpc.enable_http_proxy", 0)
