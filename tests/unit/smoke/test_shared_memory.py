from __future__ import annotations

from typing import Any

import pytest

from pipeline.smoke import shared_memory
from pipeline.smoke.values import RefusedError


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
