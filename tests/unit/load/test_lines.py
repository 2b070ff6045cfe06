"""Shared memory, with a server that is made up here."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.load import lines
from pipeline.servers.triton.client.messages import Request

REQUESTS = [Request(model="m", inputs={"x": np.full((1, 2), number, np.float32)}) for number in range(2)]
ANSWERS = [{"y": np.full((1, size), 7, np.float32), "n": np.zeros((1,), np.int64)} for size in (2, 3)]


class Server:
    """What a gRPC connection is used for: the inputs' places in, an answer of some shape out."""

    def __init__(self, memories: list[mmap.mmap]) -> None:
        self.memories, self.client, self.asked = memories, self, []
        self.writes: Callable[[mmap.mmap], Any] = lambda memory: None
        self.shape = (1, 2)
        self.hangs = False
        self.regions: list[str] = []
        self.kept: set[str] = set()

    def answer(self, call: Callable[..., Any]) -> Any:
        return call()

    def infer(self, model: str, inputs: list[Any], *, outputs: list[Any], request_id: str) -> Any:
        (tensor,) = inputs
        place = tensor._get_tensor().parameters
        start, size = place["shared_memory_offset"].int64_param, place["shared_memory_byte_size"].int64_param
        self.asked.append(np.frombuffer(self.memories[0][start : start + size], np.float32).tolist())
        self.writes(self.memories[1])
        return SimpleNamespace(
            get_output=lambda name: SimpleNamespace(shape=self.shape if name == "y" else (1,)),
            get_response=lambda: SimpleNamespace(id=request_id),
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    memories: list[mmap.mmap] = []

    server = Server(memories)

    def registered(connection: object, name: str, size: int) -> mmap.mmap:
        memories.append(mmap.mmap(-1, size))
        server.regions.append(name)
        server.kept.add(name)
        return memories[-1]

    def give_back(connection: object, names: Iterable[str], within_s: float) -> set[str]:
        if server.hangs:
            return set(names)
        server.kept -= set(names)
        return set()

    monkeypatch.setattr(lines, "registered", registered)
    monkeypatch.setattr(lines, "give_back", give_back)
    return server


def test_regions_of_senders_that_still_wait_are_given_back_too(server: Server) -> None:
    with lines.memory(server, REQUESTS, ANSWERS) as line:
        line()
        line().close()
        inputs, waiting, _ = server.regions
        assert server.kept == {inputs, waiting}
    assert server.kept == set()


def test_what_the_server_did_not_take_back_is_asked_for_again_at_the_end(server: Server) -> None:
    with lines.memory(server, REQUESTS, ANSWERS) as line:
        sender = line()
        server.hangs = True
        sender.close()
        assert len(server.kept) == 2
        server.hangs = False
    assert server.kept == set()


def test_tensors_go_and_come_through_memory(server: Server) -> None:
    def writes(memory: mmap.mmap) -> None:
        memory[:16] = np.array([1, 2], np.float32).tobytes() + np.array([5], np.int64).tobytes()

    server.writes = writes
    with lines.memory(server, REQUESTS, ANSWERS) as line:
        sender = line()
        reply = sender.send(0, "id-0")
        assert (reply.identifier, reply.outputs["y"].tolist(), reply.outputs["n"].tolist()) == ("id-0", [[1, 2]], [5])
        sender.send(1, "id-1")
        sender.close()
    assert server.asked == [[0, 0], [1, 1]]


def test_what_an_earlier_answer_left_there_does_not_pass_for_this_one(server: Server) -> None:
    with lines.memory(server, REQUESTS, ANSWERS) as line:
        sender = line()
        server.memories[1][:8] = np.array([7, 7], np.float32).tobytes()
        assert np.isnan(sender.send(0, "id").outputs["y"]).all()


def test_a_shorter_answer_keeps_its_shape(server: Server) -> None:
    with lines.memory(server, REQUESTS, ANSWERS) as line:
        assert line().send(1, "id").outputs["y"].shape == (1, 2)
