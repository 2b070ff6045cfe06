"""Addresses of servers as a person writes them, and requests that no proxy of the environment gets to see."""

from __future__ import annotations

import urllib.request
from urllib.parse import SplitResult, urlsplit

from pipeline.base.errors import ConfigError

# proxies of the environment are for the outside world
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
GRPC_WITHOUT_PROXY = ("grpc.enable_http_proxy", 0)
"""The same as an option of a gRPC channel."""
_USUAL_PORTS = {"http": 80, "https": 443}


def http_url(text: str) -> str:
    """The address of an HTTP server, with its scheme; a ConfigError where ``text`` is none.

    It is ``host:port``, or ``http://host:port`` or ``https://host:port``, whose port may be left out; with a path where
    a gateway adds one. An IPv6 address stands in brackets.
    """
    url = text if "://" in text else f"http://{text}"
    parts = _split(url)
    if parts is None or parts.scheme not in _USUAL_PORTS or (parts.port is None and "://" not in text):
        raise _refused("--url", text, "127.0.0.1:8000, [::1]:8000 or http://host:8000")
    return url


def grpc_url(text: str) -> str:
    """The address ``host:port`` of a gRPC server, an IPv6 address in brackets; a ConfigError where ``text`` is none."""
    parts = None if "/" in text else _split(f"grpc://{text}")
    if parts is None or parts.port is None:
        raise _refused("--grpc-url", text, "127.0.0.1:8001 or [::1]:8001")
    return text


def host_of(url: str) -> str:
    """The host of an address, in brackets where it is an IPv6 address."""
    host = urlsplit(url).hostname or ""
    return f"[{host}]" if ":" in host else host


def _split(url: str) -> SplitResult | None:
    """The parts of an URL; None where host or port are none."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0  # `port` raises where it is no number up to 65535
    except ValueError:
        return None
    in_doubt = parts.netloc.endswith(":") or "@" in parts.netloc or any(char.isspace() for char in url)
    return parts if named and not in_doubt else None


def _refused(option: str, text: str, expected: str) -> ConfigError:
    return ConfigError(f"{option}: not the address of a server", found=repr(text), hint=expected)
