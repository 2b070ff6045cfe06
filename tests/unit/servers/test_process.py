"""Ports, and when a server counts as ready."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.servers.process import Ports, PortTaken, find_ports, on_free_ports, wait_until_ready

HOST = "127.0.0.1"


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


class Child:
    """A server that starts: what it answers in turn, and when it has ended."""

    def __init__(self, *answers: str, lives: int = 100) -> None:
        self.answers, self.lives = list(answers), lives

    def awaited(self) -> str:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def check_starting(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise SmokeError("it ended")

    def wait(self, timeout_s: float) -> None:
        wait_until_ready(
            self.awaited, check_starting=self.check_starting, late=SmokeError, deadline=time.monotonic() + timeout_s
        )


def test_a_server_is_waited_for_as_long_as_it_lives_and_there_is_time():
    child = Child("no connection", "LOADING", "")
    child.wait(60)
    assert child.answers == [""]
    with pytest.raises(SmokeError, match=r"^it ended$"):
        Child("no connection", lives=2).wait(60)
    with pytest.raises(SmokeError, match=r"^LOADING$"):
        Child("LOADING").wait(0.1)
    with pytest.raises(SmokeError, match=r"^it ended$"):  # rather than that it is late
        Child("LOADING", lives=1).wait(-1)
    with pytest.raises(SmokeError, match=r"^it was ready only after that$"):
        Child("").wait(-1)


@contextlib.contextmanager
def started(tries: list[int], taken: int) -> Iterator[int]:
    tries.append(len(tries))
    if len(tries) <= taken:
        raise PortTaken("Address already in use")
    yield len(tries)


def test_a_server_whose_port_was_taken_is_started_on_others(tmp_path):
    tries: list[int] = []
    with on_free_ports(lambda: started(tries, 2), who="server", log_path=tmp_path) as served:
        assert served == 3
    with (
        pytest.raises(MissingError, match=r"^server: its ports were taken each time") as caught,
        on_free_ports(lambda: started([], 1), who="server", log_path=tmp_path / "log"),
    ):
        pass
    assert (caught.value.found, caught.value.log) == ("Address already in use", str(tmp_path / "log"))
