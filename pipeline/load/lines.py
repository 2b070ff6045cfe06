"""How requests travel: over HTTP, over gRPC, or with their tensors in shared memory.

Requests are encoded before the load starts, so that what is measured is the server and not this client's numpy.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from pipeline.base.errors import SmokeError
from pipeline.base.values import Array, Tensors
from pipeline.servers.triton.client.connection import GrpcConnection, HttpConnection
from pipeline.servers.triton.client.messages import Prepared, Reply, Request
from pipeline.servers.triton.client.shared_memory import give_back, new_name, registered

_GIVE_BACK_S = 1.0  # for all regions together; a server that hangs keeps nobody waiting


class Sender(Protocol):
    """What one worker sends with; for one thread, and given up after an answer that did not come."""

    def send(self, question: int, identifier: str) -> Reply:
        """Ask a question under an id of its own, and wait for its answer.

        Raises:
            RefusedError: the server answered with an error.
            NoAnswerError: no connection, or no answer in time.
        """
        ...

    def close(self) -> None:
        """Give up what only this sender uses."""
        ...


Line = Callable[[], Sender]
"""Makes senders.

Raises:
    SmokeError: there is no server any more.
    ForeignMemoryError: see shared_memory.
"""


@dataclass(frozen=True, slots=True)
class _Plain:
    connection: HttpConnection | GrpcConnection
    prepared: Sequence[Prepared]
    own: bool

    def send(self, question: int, identifier: str) -> Reply:
        return self.connection.send(self.prepared[question], identifier)

    def close(self) -> None:
        if self.own:
            self.connection.close()


def http(url: str, request_timeout_s: float, prepared: Sequence[Prepared]) -> Line:
    """A connection per sender: tritonclient.http is not for several threads."""

    def connected() -> Sender:
        connection = HttpConnection(url, request_timeout_s)
        with contextlib.suppress(SmokeError):  # only so that the first request need not connect; it tells what is wrong
            connection.live()
        return _Plain(connection, prepared, own=True)

    return connected


def grpc(connection: GrpcConnection, prepared: Sequence[Prepared]) -> Line:
    """One connection for all senders, as gRPC is meant to be used."""
    return lambda: _Plain(connection, prepared, own=False)


@contextlib.contextmanager
def memory(connection: GrpcConnection, requests: Sequence[Request], answers: Sequence[Tensors]) -> Iterator[Line]:
    """Tensors in system shared memory: all inputs in one region, written once; a region of its own per sender.

    Strings in the answers have no size known before, and go over the wire. The server is asked to take back all regions
    at the end, those too whose senders still wait for an answer. ``answers`` tell the sizes.

    Raises:
        ForeignMemoryError: the server does not see this machine's shared memory, or /dev/shm has no room.
    """
    parts = [{name: _bytes(array) for name, array in request.inputs.items()} for request in requests]
    size = sum(len(data) for part in parts for data in part.values())
    with _Regions(connection).all_given_back() as regions:
        sent, name = regions.take(size)
        offset, inputs = 0, []
        for request, part in zip(requests, parts, strict=True):
            tensors = []
            for key, data in part.items():
                sent[offset : offset + len(data)] = data
                array = request.inputs[key]
                tensor = triton_grpc.InferInput(key, list(array.shape), np_to_triton_dtype(array.dtype))
                tensor.set_shared_memory(name, len(data), offset)
                tensors.append(tensor)
                offset += len(data)
            inputs.append(tensors)
        yield lambda: _Memory(connection, regions, requests, inputs, answers)


class _Regions:
    """The regions of one load, for the threads of its senders; a server that is gone need not take them back."""

    def __init__(self, connection: GrpcConnection) -> None:
        self._connection = connection
        self._names: set[str] = set()

    @contextlib.contextmanager
    def all_given_back(self) -> Iterator[_Regions]:
        try:
            yield self
        finally:
            self.give_back(*self._names)

    def take(self, size: int) -> tuple[mmap.mmap, str]:
        """A region of at least one byte."""
        name = new_name()
        self._names.add(name)  # before the server knows of it: whatever comes in between, it will be given back
        return registered(self._connection, name, max(1, size)), name

    def give_back(self, *names: str) -> None:
        """Those that the server does not take back now are asked for again at the end."""
        self._names -= set(names) - give_back(self._connection, names, _GIVE_BACK_S)


def _bytes(array: Array) -> bytes:
    if array.dtype.kind == "O":
        return bytes(serialize_byte_tensor(array).item())
    return np.ascontiguousarray(array).tobytes()


class _Memory:
    def __init__(
        self,
        connection: GrpcConnection,
        regions: _Regions,
        requests: Sequence[Request],
        inputs: Sequence[Sequence[Any]],
        answers: Sequence[Tensors],
    ) -> None:
        self.connection, self.regions = connection, regions
        self.requests, self.inputs, self.answers = requests, inputs, answers
        size = max(sum(array.nbytes for array in _sized(answer).values()) for answer in answers)
        self._got, self._name = regions.take(size)
        self._blank = b"\xff" * size
        self._wanted = [self._outputs(answer) for answer in answers]

    def _outputs(self, answer: Tensors) -> list[Any]:
        wanted, offset = [], 0
        for name, array in answer.items():
            output = triton_grpc.InferRequestedOutput(name)
            if name in _sized(answer):
                output.set_shared_memory(self._name, array.nbytes, offset)
                offset += array.nbytes
            wanted.append(output)
        return wanted

    def send(self, question: int, identifier: str) -> Reply:
        self._got[: len(self._blank)] = self._blank  # an answer left here by an earlier request must not pass for this
        request = self.requests[question]
        wanted = {"outputs": self._wanted[question], "request_id": identifier}
        ask = partial(self.connection.client.infer, request.model, self.inputs[question], **wanted)
        result, outputs, offset = self.connection.answer(ask), dict[str, Array](), 0
        for name, expected in self.answers[question].items():
            if expected.dtype.kind == "O":
                outputs[name] = result.as_numpy(name)
                continue
            shape = tuple(result.get_output(name).shape)
            values = np.frombuffer(self._got[offset : offset + expected.nbytes], expected.dtype)[: int(np.prod(shape))]
            outputs[name] = values.reshape(shape)  # never larger: the server refuses what the region does not hold
            offset += expected.nbytes
        return Reply(identifier=result.get_response().id, outputs=outputs)

    def close(self) -> None:
        self._got.close()
        self.regions.give_back(self._name)


def _sized(answer: Tensors) -> dict[str, Array]:
    return {name: array for name, array in answer.items() if array.dtype.kind != "O"}
