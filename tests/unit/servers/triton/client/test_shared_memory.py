from __future__ import annotations

import time
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from pipeline.proof.failures import RefusedError
from pipeline.servers.triton.client import shared_memory


class Busy:
    """A connection whose server still holds a region for the first few calls."""

    def __init__(self, refusals: int, text: str = "Cannot unregister 'r', it is currently in use.") -> None:
        self.refusals, self.text, self.calls = refusals, text, 0
        self.client = self

    def unregister_system_shared_memory(self, name: str) -> None:
        self.calls += 1
        if self.calls <= self.refusals:
            raise RefusedError(self.text, "INTERNAL")

    def answer(self, call: Any) -> Any:
        return call()


def test_a_region_still_in_use_is_taken_back_a_moment_later() -> None:
    connection = Busy(refusals=3)
    shared_memory._unregister(connection, "r")
    assert connection.calls == 4


def test_another_refusal_is_passed_on_at_once() -> None:
    connection = Busy(refusals=9, text="no such region")
    with pytest.raises(RefusedError):
        shared_memory._unregister(connection, "r")
    assert connection.calls == 1


class Server:
    """Takes regions back, but for those in use; or answers nothing."""

    def __init__(self, *, in_use: dict[str, int] | None = None, hangs: bool = False) -> None:
        self.in_use, self.hangs, self.asked, self.client = dict(in_use or {}), hangs, [], self

    def unregister_system_shared_memory(self, name: str, *, client_timeout: float) -> None:
        self.asked.append(name)
        if self.hangs:
            time.sleep(client_timeout)
            raise InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")
        if self.in_use.get(name, 0) > 0:
            self.in_use[name] -= 1
            raise InferenceServerException(f"Cannot unregister '{name}', it is currently in use.", "INTERNAL")


def test_regions_in_use_do_not_keep_the_others_from_being_given_back() -> None:
    server = Server(in_use={"a": 2})
    assert shared_memory.give_back(server, ["a", "b"], within_s=10.0) == set()
    assert server.asked == ["a", "b", "a", "a"]


def test_a_server_that_hangs_is_asked_no_longer_than_the_time_for_all() -> None:
    server = Server(hangs=True)
    assert shared_memory.give_back(server, ["a", "b", "c"], within_s=0.05) == {"a", "b", "c"}
    assert server.asked == ["a"]


def test_a_server_that_is_gone_has_nothing_to_give_back() -> None:
    server = Server()
    server.unregister_system_shared_memory = lambda name, client_timeout: _raise("StatusCode.UNAVAILABLE")
    assert shared_memory.give_back(server, ["a", "b"], within_s=10.0) == set()


def _raise(status: str) -> None:
    raise InferenceServerException("connection refused", status)
