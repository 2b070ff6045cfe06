"""One inference through Triton's system shared memory: inputs and outputs in /dev/shm, only names on the wire.

The regions are made here rather than by ``tritonclient.utils.shared_memory``, whose import needs ``pkg_resources``,
which setuptools no longer has.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipeline.base.values import Array, Tensors
from pipeline.proof.failures import RefusedError
from pipeline.servers.triton.client.connection import GrpcConnection
from pipeline.servers.triton.client.messages import Request

_FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux (shm_overview(7))

_IN_USE = "currently in use"
_RELEASE_TIMEOUT_S, _RELEASE_POLL_S = 5.0, 0.02


class ForeignMemoryError(Exception):
    """The server cannot open a region of this machine: it runs in a container or behind a tunnel."""


def infer(connection: GrpcConnection, request: Request, reference: Tensors) -> dict[str, Array]:
    """Answer ``request`` with every tensor in shared memory.

    Args:
        connection: a server on this machine.
        request: the inputs, and the outputs asked for.
        reference: arrays of the outputs' shapes and dtypes.

    Raises:
        ForeignMemoryError: the server does not see this machine's shared memory, or /dev/shm has no room.
        RefusedError: the server refused the request.
        NoAnswerError: no connection, or no answer in time.
    """
    inputs, outputs = dict(request.inputs), {name: reference[name] for name in request.outputs}
    with region(connection, _size(inputs)) as (sent, sent_name), region(connection, _size(outputs)) as (got, got_name):
        tensors, wanted = [], []
        for name, offset in _offsets(inputs).items():
            array = np.ascontiguousarray(inputs[name])
            sent[offset : offset + array.nbytes] = array.tobytes()
            tensor = triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_shared_memory(sent_name, array.nbytes, offset)
            tensors.append(tensor)
        for name, offset in _offsets(outputs).items():
            output = triton_grpc.InferRequestedOutput(name)
            output.set_shared_memory(got_name, outputs[name].nbytes, offset)
            wanted.append(output)
        call = partial(connection.client.infer, request.model, tensors, model_version=request.version, outputs=wanted)
        result = connection.answer(call)
        return {
            name: _read(got, offset, outputs[name].dtype, tuple(result.get_output(name).shape))
            for name, offset in _offsets(outputs).items()
        }


def _size(arrays: Tensors) -> int:
    return max(1, sum(array.nbytes for array in arrays.values()))


def _offsets(arrays: Tensors) -> dict[str, int]:
    ends = np.cumsum([0, *(array.nbytes for array in arrays.values())])
    return dict(zip(arrays, map(int, ends), strict=False))


def _read(memory: mmap.mmap, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(memory[offset : offset + size], dtype=dtype).reshape(shape)


@contextlib.contextmanager
def region(connection: GrpcConnection, size: int) -> Iterator[tuple[mmap.mmap, str]]:
    """A region of ``size`` bytes known to the server, and its name; gone afterwards.

    Raises:
        ForeignMemoryError: the server does not see this machine's shared memory, or /dev/shm has no room.
        RefusedError: the server does not give it back.
        NoAnswerError: no connection, or no answer in time.
    """
    name = new_name()
    with contextlib.closing(registered(connection, name, size)) as memory:
        try:
            yield memory, name
        finally:
            _unregister(connection, name)


def new_name() -> str:
    """A name that no other region has."""
    return f"smoke-{os.getpid()}-{uuid4().hex[:12]}"


def registered(connection: GrpcConnection, name: str, size: int) -> mmap.mmap:
    """Make a region of ``size`` bytes and tell the server of it; to be given back.

    Raises:
        ForeignMemoryError: the server does not see this machine's shared memory, or /dev/shm has no room.
        NoAnswerError: no connection, or no answer in time.
    """
    path = _FOLDER / name
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError as error:
        raise ForeignMemoryError(str(error)) from error
    try:
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(contextlib.closing(_mapped(descriptor, size)))
            connection.answer(partial(connection.client.register_system_shared_memory, name, f"/{name}", size))
            stack.pop_all()
            return memory
    except RefusedError as error:
        raise ForeignMemoryError(error.text) from error
    finally:
        path.unlink(missing_ok=True)  # the server has it open: nothing is left behind even if this process is killed


def give_back(connection: GrpcConnection, names: Iterable[str], within_s: float) -> set[str]:
    """Ask the server to take regions back, as many as it will within a time that all of them share.

    Args:
        connection: where they were registered.
        names: of the regions.
        within_s: from now.

    Returns:
        Names of those that it may still have: requests use them, or it did not answer in time.
    """
    deadline = time.monotonic() + within_s
    left = list(names)
    while left and (left_s := deadline - time.monotonic()) > 0:
        name = left.pop(0)
        try:
            connection.client.unregister_system_shared_memory(name, client_timeout=left_s)
        except InferenceServerException as error:
            if _IN_USE in error.message() or "DEADLINE_EXCEEDED" in str(error.status()):
                left.append(name)
                time.sleep(_RELEASE_POLL_S)
    return set(left)


def _unregister(connection: GrpcConnection, name: str) -> None:
    """Take a region back; Triton may hold it for a moment after the answer ("it is currently in use", core 2.51)."""
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while True:
        try:
            connection.answer(partial(connection.client.unregister_system_shared_memory, name))
            return
        except RefusedError as error:
            if _IN_USE not in error.text or time.monotonic() > deadline:
                raise
            time.sleep(_RELEASE_POLL_S)


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    try:
        os.posix_fallocate(
            descriptor, 0, size
        )  # a full /dev/shm is an error here, and a SIGBUS at the first write without
        return mmap.mmap(descriptor, size)
    except OSError as error:
        raise ForeignMemoryError(str(error)) from error
    finally:
        os.close(descriptor)
