"""One TorchServe model over HTTP and gRPC: its own protocol, and KServe's version 2.

Messages of version 2 are tritonclient's: TorchServe's copy of that protocol has the same fields under another package
name. The two messages of its own gRPC service are stated here (ts/frontend/model-server.jar, proto/inference.proto,
0.12.0), so that nothing has to be generated.
"""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from pipeline.base import network
from pipeline.base.values import NUMPY_DTYPES, Array, Signature, Tensors, TensorSpec
from pipeline.proof.failures import NoAnswerError, RefusedError

_SERVICE = "org.pytorch.serve.grpc.inference"
_V2_SERVICE = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
_MAX_MESSAGE_BYTES = 64 * 2**20
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back over HTTP: the JSON value, and how many requests its forward pass answered."""

    value: Any
    batch_size: int


def npy(array: Array) -> bytes:
    """An array as .npy bytes."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def json_lists(inputs: Tensors) -> bytes:
    """Tensors as JSON lists by name."""
    return json.dumps({name: array.tolist() for name, array in inputs.items()}).encode()


class TorchServeClient:
    """Asks one model; every method that asks raises RefusedError or NoAnswerError.

    Args:
        http_url: ``http://host:port`` of the inference API.
        grpc_url: ``host:port`` of its gRPC side.
        model: the model's name.
        signature: names and dtypes of its tensors.
        timeout_s: longest wait for one answer.
    """

    def __init__(self, http_url: str, grpc_url: str, model: str, signature: Signature, timeout_s: float) -> None:
        self._http_url, self._model, self._signature, self._timeout_s = http_url, model, signature, timeout_s
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), network.GRPC_WITHOUT_PROXY]
        self._channel = grpc.insecure_channel(grpc_url, options=options)

    def close(self) -> None:
        """Give up the gRPC connection."""
        self._channel.close()

    def predict(self, body: bytes, content_type: str = "application/octet-stream", model: str = "") -> Answer:
        """TorchServe's own protocol over HTTP."""
        return self._post(f"/predictions/{model or self._model}", body, content_type)

    def predict_grpc(self, inputs: Mapping[str, bytes], model: str = "") -> Any:
        """The same over gRPC, where a refusal comes as an answer with a ``code`` (TorchServe 0.12.0)."""
        request, answer = _messages()
        message = request(model_name=model or self._model, input=inputs)
        reply = self._call(f"/{_SERVICE}.InferenceAPIsService/Predictions", message, answer.FromString)
        value = json.loads(reply.prediction)
        if isinstance(value, dict) and {"code", "message"} <= value.keys():
            raise RefusedError(str(value["message"]), str(value["code"]))
        return value

    def infer(self, inputs: Tensors) -> dict[str, Array]:
        """KServe's protocol version 2 over HTTP."""
        body = {
            "id": "smoke",
            "inputs": [{**_head(name, array), "data": array.ravel().tolist()} for name, array in inputs.items()],
        }
        found = self._post(f"/v2/models/{self._model}/infer", json.dumps(body).encode(), "application/json").value
        rows = {row["name"]: row for row in found["outputs"]}
        return {
            name: _restored(spec, rows[name]["datatype"], rows[name]["data"], rows[name]["shape"])
            for name, spec in self._outputs(rows).items()
        }

    def infer_grpc(self, inputs: Tensors) -> dict[str, Array]:
        """KServe's protocol version 2 over gRPC, where a refusal comes as an output named ``error``."""
        request = service_pb2.ModelInferRequest(model_name=self._model, id="smoke")
        for name, array in inputs.items():
            head = _head(name, array)
            tensor = request.inputs.add(**head)
            getattr(tensor.contents, _CONTENTS[head["datatype"]]).extend(array.ravel().tolist())
        reply = self._call(f"/{_V2_SERVICE}/ModelInfer", request, service_pb2.ModelInferResponse.FromString)
        rows = {row.name: row for row in reply.outputs}
        if "error" in rows and "error" not in {spec.name for spec in self._signature.outputs}:
            raise RefusedError(json.loads(rows["error"].contents.bytes_contents[0]), "400")
        return {
            name: _restored(spec, rows[name].datatype, _contents(rows[name]), rows[name].shape)
            for name, spec in self._outputs(rows).items()
        }

    def arrays(self, value: Any) -> dict[str, Array]:
        """The outputs in an answer of TorchServe's own protocol."""
        return {name: np.asarray(value[name], NUMPY_DTYPES[spec.dtype]) for name, spec in self._outputs(value).items()}

    @property
    def grpc_carries_inputs(self) -> bool:
        """Whether protocol version 2 has a field for all inputs' types."""
        return all(np_to_triton_dtype(NUMPY_DTYPES[spec.dtype]) in _CONTENTS for spec in self._signature.inputs)

    def _outputs(self, rows: Any) -> dict[str, TensorSpec]:
        expected = {spec.name: spec for spec in self._signature.outputs}
        if not isinstance(rows, dict) or set(rows) != set(expected):
            raise RefusedError(f"an answer without outputs {', '.join(expected)}: {str(rows)[:200]}", "200")
        return expected

    def _post(self, path: str, body: bytes, content_type: str) -> Answer:
        request = urllib.request.Request(  # noqa: S310 - http URL of our own making
            f"{self._http_url}{path}", data=body, headers={"Content-Type": content_type}
        )
        try:
            with network.opener.open(request, timeout=self._timeout_s) as answer:
                return Answer(value=json.load(answer), batch_size=int(answer.headers.get("x-batch-size", "0")))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            raise RefusedError(_message(text), str(error.code)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            timed_out = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            raise NoAnswerError("no answer over HTTP", found=str(error), timed_out=timed_out) from error

    def _call(self, method: str, message: Any, decode: Callable[[bytes], Any]) -> Any:
        call = self._channel.unary_unary(
            method, request_serializer=type(message).SerializeToString, response_deserializer=decode
        )
        try:
            return call(message, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                timed_out = code == grpc.StatusCode.DEADLINE_EXCEEDED
                raise NoAnswerError("no answer over gRPC", found=error.details(), timed_out=timed_out) from error
            raise RefusedError(error.details(), code.name) from error


def _head(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "datatype": np_to_triton_dtype(array.dtype), "shape": list(array.shape)}


def _restored(spec: TensorSpec, datatype: str, data: Any, shape: Any) -> Array:
    expected = "FP32" if spec.dtype == "float16" else np_to_triton_dtype(NUMPY_DTYPES[spec.dtype])
    if datatype != expected:
        raise RefusedError(f"output {spec.name} is {datatype}, expected {expected}", "200")
    return np.asarray(data, NUMPY_DTYPES[spec.dtype]).reshape(tuple(shape))


def _contents(row: Any) -> Any:
    return getattr(row.contents, _CONTENTS[row.datatype])


def _message(text: str) -> str:
    """The reason in an error's JSON, whichever of the two protocols' forms it has."""
    try:
        found = json.loads(text)
        return str(found.get("message") or found.get("error") or text)
    except (ValueError, AttributeError):
        return text


@cache
def _messages() -> tuple[Any, Any]:
    """PredictionsRequest and PredictionResponse, with the fields that are used here."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="torchserve_inference.proto", package=_SERVICE, syntax="proto3")
    request = file.message_type.add(name="PredictionsRequest")
    request.field.add(name="model_name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry = request.nested_type.add(name="InputEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    request.field.add(
        name="input",
        number=3,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=f".{_SERVICE}.PredictionsRequest.InputEntry",
    )
    answer = file.message_type.add(name="PredictionResponse")
    answer.field.add(name="prediction", number=1, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("PredictionsRequest", "PredictionResponse")
    made = [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_SERVICE}.{name}")) for name in names]
    return made[0], made[1]
