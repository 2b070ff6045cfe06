"""One Triton server through tritonclient, over HTTP or gRPC, behind one interface and with two errors."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import gevent  # type: ignore[import-untyped]
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from geventhttpclient.response import HTTPParseError  # type: ignore[import-untyped]
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from pipeline.base import network
from pipeline.base.errors import SmokeError
from pipeline.base.values import Array
from pipeline.proof.failures import NoAnswerError, RefusedError
from pipeline.servers.triton.client.messages import (
    IndexRow,
    ModelMetadata,
    Prepared,
    Reply,
    Request,
    Statistics,
    TensorMetadata,
)

CONCURRENCY = 32
"""Connections an HTTP client may hold open, and so requests it can have in flight."""
CONNECT_TIMEOUT_S = 10.0
"""Longest wait for a server to take a connection, or to say that it lives."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

_T = TypeVar("_T")


def is_loopback(url: str) -> bool:
    """Whether ``host:port`` or an URL names this machine."""
    return urlsplit(url if "//" in url else f"//{url}").hostname in _LOOPBACK


class HttpConnection:
    """A server over HTTP; for use by one thread, as tritonclient.http asks.

    Args:
        url: ``http://host:port``, ``https://host:port`` or ``host:port``, with a path where a gateway adds one.
        request_timeout_s: longest wait for the server between two pieces of an answer.
    """

    protocol: Literal["http", "grpc"] = "http"

    def __init__(self, url: str, request_timeout_s: float) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        self._timeout_s = request_timeout_s
        self._client = triton_http.InferenceServerClient(
            parts.netloc + parts.path.rstrip("/"),
            concurrency=CONCURRENCY,
            connection_timeout=min(CONNECT_TIMEOUT_S, request_timeout_s),
            network_timeout=request_timeout_s,
            ssl=parts.scheme == "https",
        )

    def _answer(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except InferenceServerException as error:
            if error.status() is None:  # raised by the client itself, when its wait has ended
                raise self._too_late() from error
            raise RefusedError(error.message(), error.status()) from error
        except TimeoutError as error:
            raise self._too_late() from error
        except (OSError, HTTPParseError) as error:
            raise NoAnswerError("no connection over HTTP", found=_words(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"the answer is not in Triton's form: {_words(error)}", "200") from error

    def _too_late(self) -> NoAnswerError:
        return NoAnswerError(f"no answer over HTTP within {self._timeout_s:g} s", timed_out=True)

    def live(self) -> None:
        """Return if a live server answers."""
        if not self._answer(self._client.is_server_live):
            raise RefusedError("it does not say that it is live", "/v2/health/live")

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Names, types and shapes of a model's tensors."""
        return self._answer(lambda: _metadata(self._client.get_model_metadata(model, version)))

    def config(self, model: str, version: str = "") -> Any:
        """The configuration in force, as a ModelConfig message."""
        fields = self._answer(lambda: self._client.get_model_config(model, version))
        try:
            return json_format.ParseDict(fields, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise RefusedError(f"the served configuration cannot be read: {error}", "200") from error

    def index(self) -> list[IndexRow]:
        """Every model version the server knows."""
        return self._answer(lambda: _index(self._client.get_model_repository_index()))

    def statistics(self, model: str, version: str) -> Statistics:
        """Counters of one version."""
        return self._answer(lambda: _statistics(self._client.get_inference_statistics(model, version)))

    def infer(self, request: Request) -> dict[str, Array]:
        """Send one request and wait for its answer."""
        arguments = _arguments(triton_http, request)
        return self._answer(lambda: _tensors(self._client.infer(**arguments), request))

    def prepare(self, request: Request) -> Prepared:
        """Encode a request once, for ``send``; it may be sent by several threads."""
        return Prepared(request=request, arguments=_arguments(triton_http, request))

    def send(self, prepared: Prepared, identifier: str) -> Reply:
        """Send an encoded request under an id of its own, and wait for its answer."""
        call = partial(self._client.infer, **prepared.arguments, request_id=identifier)
        return self._answer(lambda: _reply(call(), prepared))

    def infer_all(self, requests: Sequence[Request]) -> list[dict[str, Array] | RefusedError]:
        """Send all requests at once; answers come in the requests' order."""
        deadline = time.monotonic() + self._timeout_s
        answers: list[dict[str, Array] | RefusedError] = []
        with _silent_hub():
            pending = [self._client.async_infer(**_arguments(triton_http, request)) for request in requests]
            for request, handle in zip(requests, pending, strict=True):
                answers.append(self._collect(handle, request, deadline))
        return answers

    def _collect(self, handle: Any, request: Request, deadline: float) -> dict[str, Array] | RefusedError:
        left_s = max(0.001, deadline - time.monotonic())
        try:
            return self._answer(lambda: _tensors(handle.get_result(timeout=left_s), request))
        except RefusedError as error:
            return error

    def close(self) -> None:
        """Give up the connection."""
        self._client.close()


class GrpcConnection:
    """A server over gRPC.

    Args:
        url: ``host:port``.
        request_timeout_s: longest wait for an answer.
    """

    protocol: Literal["http", "grpc"] = "grpc"

    def __init__(self, url: str, request_timeout_s: float) -> None:
        options: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # Channels of one process share connections by address, and with them the back-off of a server that has
            # since ended; a new connection must mean a new attempt.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if is_loopback(url):
            options.append(network.GRPC_WITHOUT_PROXY)
        self._timeout_s = request_timeout_s
        self.client = triton_grpc.InferenceServerClient(url, channel_args=options)

    def answer(self, call: Callable[..., _T]) -> _T:
        """Call with ``client_timeout`` and map tritonclient's errors."""
        try:
            return call(client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise self._mapped(error) from error

    def _mapped(self, error: Any) -> RefusedError | NoAnswerError:
        status = str(error.status()).removeprefix("StatusCode.")
        if status == "DEADLINE_EXCEEDED":
            return NoAnswerError(f"no answer over gRPC within {self._timeout_s:g} s", timed_out=True)
        # Both a lost connection and Triton itself (a full queue, an unavailable version) say UNAVAILABLE.
        if status in ("UNAVAILABLE", "CANCELLED") and not self._is_live():
            return NoAnswerError("no connection over gRPC", found=_words(error.message()))
        return RefusedError(error.message(), status)

    def _is_live(self) -> bool:
        try:
            return bool(self.client.is_server_live(client_timeout=min(CONNECT_TIMEOUT_S, self._timeout_s)))
        except InferenceServerException:
            return False

    def live(self) -> None:
        """Return if a live server answers."""
        try:
            live = self.client.is_server_live(client_timeout=min(CONNECT_TIMEOUT_S, self._timeout_s))
        except InferenceServerException as error:
            raise NoAnswerError("no connection over gRPC", found=_words(error.message())) from error
        if not live:
            raise RefusedError("it does not say that it is live", "ServerLive")

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Names, types and shapes of a model's tensors."""
        return _metadata(self.answer(partial(self.client.get_model_metadata, model, version, as_json=True)))

    def config(self, model: str, version: str = "") -> Any:
        """The configuration in force, as a ModelConfig message."""
        return self.answer(partial(self.client.get_model_config, model, version)).config

    def index(self) -> list[IndexRow]:
        """Every model version the server knows."""
        return _index(self.answer(partial(self.client.get_model_repository_index, as_json=True)).get("models", []))

    def statistics(self, model: str, version: str) -> Statistics:
        """Counters of one version."""
        return _statistics(self.answer(partial(self.client.get_inference_statistics, model, version, as_json=True)))

    def infer(self, request: Request) -> dict[str, Array]:
        """Send one request and wait for its answer."""
        return _tensors(self.answer(partial(self.client.infer, **_arguments(triton_grpc, request))), request)

    def prepare(self, request: Request) -> Prepared:
        """Encode a request once, for ``send``; it may be sent by several threads."""
        return Prepared(request=request, arguments=_arguments(triton_grpc, request))

    def send(self, prepared: Prepared, identifier: str) -> Reply:
        """Send an encoded request under an id of its own, and wait for its answer."""
        return _reply(self.answer(partial(self.client.infer, **prepared.arguments, request_id=identifier)), prepared)

    def infer_all(self, requests: Sequence[Request]) -> list[dict[str, Array] | RefusedError]:
        """Send all requests at once; answers come in the requests' order."""
        done: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()

        def finished(position: int, result: Any, error: Any) -> None:
            done.put((position, result, error))

        encoded = [_arguments(triton_grpc, request) for request in requests]  # before any is sent: then all go at once
        for position, arguments in enumerate(encoded):
            send = partial(self.client.async_infer, **arguments)
            self.answer(partial(send, callback=partial(finished, position)))
        answers: dict[int, dict[str, Array] | RefusedError] = {}
        for _ in requests:
            position, result, error = done.get()  # bounded: each call has its own timeout
            answers[position] = self._collect(result, error, requests[position])
        return [answers[position] for position in range(len(requests))]

    def _collect(self, result: Any, error: Any, request: Request) -> dict[str, Array] | RefusedError:
        if error is None:
            return _tensors(result, request)
        mapped = self._mapped(error)
        if isinstance(mapped, NoAnswerError):
            raise mapped from error
        return mapped

    def close(self) -> None:
        """Give up the connection."""
        self.client.close()


Connection = HttpConnection | GrpcConnection
"""A server over one protocol. Every method raises RefusedError or NoAnswerError."""


@contextlib.contextmanager
def connected(
    model: str, http_url: str, grpc_url: str, request_timeout_s: float
) -> Iterator[tuple[HttpConnection, GrpcConnection, dict[str, str]]]:
    """Both connections, and why one of them does not work, by its protocol.

    Raises:
        SmokeError: neither works.
    """
    http, grpc = HttpConnection(http_url, request_timeout_s), GrpcConnection(grpc_url, request_timeout_s)
    with contextlib.closing(http), contextlib.closing(grpc):
        lost = _unreachable((http, grpc))
        if len(lost) == 2:
            raise SmokeError(
                f"smoke[{model}]: no server answers at {http_url} or {grpc_url}",
                found="; ".join(lost.values()),
                hint="check the addresses, and that the server has started",
            )
        yield http, grpc, lost


def _unreachable(connections: Sequence[Connection]) -> dict[str, str]:
    lost: dict[str, str] = {}
    for connection in connections:
        try:
            connection.live()
        except (NoAnswerError, RefusedError) as error:
            lost[connection.protocol] = error.in_one_line()
    return lost


def _arguments(module: Any, request: Request) -> dict[str, Any]:
    """Arguments of ``infer`` and ``async_infer``, which both tritonclient modules share."""
    inputs = []
    for name, array in request.inputs.items():
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [module.InferRequestedOutput(name, class_count=request.classes) for name in request.outputs]
    return {"model_name": request.model, "model_version": request.version, "inputs": inputs, "outputs": outputs or None}


def _reply(result: Any, prepared: Prepared) -> Reply:
    response = result.get_response()
    identifier = response.get("id", "") if isinstance(response, dict) else response.id
    return Reply(identifier=identifier, outputs=_tensors(result, prepared.request))


def _tensors(result: Any, request: Request) -> dict[str, Array]:
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    kinds = dict(
        (item["name"], item["datatype"]) if isinstance(item, dict) else (item.name, item.datatype) for item in outputs
    )
    return {name: _array(result, name, kinds[name]) for name in request.outputs or kinds if name in kinds}


def _array(result: Any, name: str, datatype: str) -> Array:
    found: Array = result.as_numpy(name)
    # tritonclient.http 2.51 takes an empty tensor for one of float64
    return found if found.size else found.astype(triton_to_np_dtype(datatype))


def _metadata(fields: Mapping[str, Any]) -> ModelMetadata:
    def tensors(key: str) -> tuple[TensorMetadata, ...]:
        return tuple(
            TensorMetadata(
                name=item["name"], datatype=item["datatype"], shape=tuple(int(size) for size in item.get("shape", ()))
            )
            for item in fields.get(key, ())
        )

    return ModelMetadata(
        name=fields["name"],
        platform=fields.get("platform", ""),
        versions=tuple(fields.get("versions", ())),
        inputs=tensors("inputs"),
        outputs=tensors("outputs"),
    )


def _index(rows: Sequence[Mapping[str, str]]) -> list[IndexRow]:
    return [
        IndexRow(
            name=row["name"], version=row.get("version", ""), state=row.get("state", ""), reason=row.get("reason", "")
        )
        for row in rows
    ]


def _statistics(fields: Mapping[str, Any]) -> Statistics:
    """Counters from either protocol's JSON; gRPC's writes 64-bit integers as text and leaves zeros out."""
    (model,) = fields["model_stats"]
    durations = model.get("inference_stats", {})
    count = {key: int(durations.get(key, {}).get("count", 0)) for key in ("success", "cache_hit")}
    return Statistics(
        requests=count["success"] - count["cache_hit"],
        executions=int(model.get("execution_count", 0)),
        batch_sizes={
            int(row["batch_size"]): int(row.get("compute_infer", {}).get("count", 0))
            for row in model.get("batch_stats", ())
        },
    )


def _words(error: Exception | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    """Keep gevent from printing a traceback for each request that fails: the error comes back by ``get_result``."""
    hub = gevent.get_hub()
    before = hub.exception_stream
    hub.exception_stream = None
    try:
        yield
    finally:
        hub.exception_stream = before
