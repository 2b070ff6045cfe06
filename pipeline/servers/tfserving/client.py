"""Asks a running TensorFlow Serving, over REST and over gRPC."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.base import network
from pipeline.base.errors import SmokeError
from pipeline.base.values import NUMPY_DTYPES, Array, RunningServer, Signature, Tensors

_TIMEOUT_S = 60.0
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_MAX_MESSAGE_BYTES = 2**31 - 1


def metadata(server: RunningServer, model: str, expected: Mapping[str, Any]) -> str:
    """Compare ``/v1/models/NAME/metadata`` with what was printed before.

    Returns:
        The address.

    Raises:
        SmokeError: it is another, or there is no answer.
    """
    url = f"{server.http_url}/v1/models/{model}/metadata"
    shown = _asked(url, None)
    for path in (("model_spec", "version"), ("metadata", "signature_def", "signature_def", "serving_default")):
        theirs, ours = _at(shown, path), _at(expected, path)
        sides = ("inputs", "outputs") if isinstance(ours, Mapping) else ()
        differs = [side for side in sides if not isinstance(theirs, Mapping) or theirs.get(side) != ours[side]]
        if differs or (not sides and theirs != ours):
            raise SmokeError(f"{'.'.join(path)} is {json.dumps(theirs)}; expected {json.dumps(ours)}")
    return url


def rest(
    server: RunningServer, model: str, signature: Signature, shown: Mapping[str, Any], inputs: Tensors
) -> dict[str, Array]:
    """One request to ``/v1/models/NAME:predict`` in the columnar format (tensorflow.org/tfx/serving/api_rest).

    Raises:
        SmokeError: the server refused it, or did not answer.
    """
    body = {"signature_name": "serving_default", "inputs": {name: array.tolist() for name, array in inputs.items()}}
    answer = _asked(f"{server.http_url}/v1/models/{model}:predict", json.dumps(body).encode())
    outputs = answer["outputs"]
    named = outputs if len(signature.outputs) > 1 else {signature.outputs[0].name: outputs}
    return {spec.name: np.asarray(named[spec.name], NUMPY_DTYPES[spec.dtype]) for spec in signature.outputs}


def grpc(
    server: RunningServer, model: str, signature: Signature, shown: Mapping[str, Any], inputs: Tensors
) -> dict[str, Array]:
    """One Predict call, its request built from the printed metadata.

    Raises:
        SmokeError: the server refused it, or did not answer.
        MissingError: TensorFlow, which reads and writes its tensors, is not installed.
    """
    import grpc as library

    from pipeline.formats.saved_model import process

    child = process.shared()
    _, request = child.call("request", {"metadata": dict(shown)}, inputs)
    limits = [(f"grpc.max_{way}_message_length", _MAX_MESSAGE_BYTES) for way in ("send", "receive")]
    with library.insecure_channel(server.grpc_url, options=[*limits, network.GRPC_WITHOUT_PROXY]) as channel:
        predict = channel.unary_unary(_PREDICT)  # bytes in, bytes out
        try:
            answer = predict(request["request"].tobytes(), timeout=_TIMEOUT_S, wait_for_ready=True)
        except library.RpcError as error:
            raise SmokeError(f"Predict: {error.code().name}", found=str(error.details())) from error
    _, outputs = child.call("response", {}, {"response": np.frombuffer(answer, np.uint8)})
    return outputs


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _asked(url: str, body: bytes | None) -> Any:
    try:
        with network.opener.open(url, body, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise SmokeError(f"{url}: HTTP {error.code}", found=error.read().decode(errors="replace")) from error
    except (OSError, ValueError) as error:
        raise SmokeError(f"{url}: no answer", found=str(error)) from error
