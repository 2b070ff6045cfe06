"""Shared memory, with a server that is made up here."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.load import lines
from pipeline.smoke.values import NoAnswerError, Request

REQUESTS = [Request(model="m", inputs={"x": np.full((1, 2), number, np.float32)}) for number in range(2)]
ANSWERS = [{"y": np.full((1, size), 7, np.float32), "n": np.zeros((1,), np.int64)} for size in (2, 3)]


class Server:
    """What a gRPC connection is used for: the inputs' places in, an answer of some shape out."""

    def __init__(self, memories: list[mmap.mmap]) -> None:
        self.memories, self.client, self.asked = memories, self, []
        self.writes: Callable[[mmap.mmap], Any] = lambda memory: None
        self.shape = (1, 2)

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

    @contextlib.contextmanager
    def region(connection: object, size: int) -> Iterator[tuple[mmap.mmap, str]]:
        memories.append(mmap.mmap(-1, size))
        yield memories[-1], f"region-{len(memories)}"
        raise NoAnswerError("gone")  # by the end the server takes nothing back

    monkeypatch.setattr(lines, "region", region)
    return Server(memories)


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
