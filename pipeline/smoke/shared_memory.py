"""One inference through Triton's system shared memory: inputs and outputs in /dev/shm, only names on the wire.

The regions are made here rather than by ``tritonclient.utils.shared_memory``, whose import needs ``pkg_resources``,
which setuptools no longer has.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import np_to_triton_dtype

from pipeline.artifacts import Array, Tensors
from pipeline.smoke.connection import GrpcConnection
from pipeline.smoke.values import RefusedError, Request

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
    name = f"smoke-{os.getpid()}-{uuid4().hex[:12]}"
    path = _FOLDER / name
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError as error:
        raise ForeignMemoryError(str(error)) from error
    try:
        with contextlib.closing(_mapped(descriptor, size)) as memory:
            try:
                connection.answer(partial(connection.client.register_system_shared_memory, name, f"/{name}", size))
            except RefusedError as error:
                raise ForeignMemoryError(error.text) from error
            path.unlink()  # the server has it open: nothing is left behind even if this process is killed
            try:
                yield memory, name
            finally:
                _unregister(connection, name)
    finally:
        path.unlink(missing_ok=True)


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
