"""Unit tests touch neither the network nor other programs: an accidental attempt fails the test."""

from __future__ import annotations

import socket
import subprocess

import numpy.testing  # noqa: F401 - asks lscpu when it is first imported: before any test
import pytest


@pytest.fixture(autouse=True)
def _no_outside_world(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test started a process or opened a connection")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
