"""What a SavedModel tells of itself, and TF-Serving's requests and responses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format, wrappers_pb2
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from pipeline.base.errors import StageError
from pipeline.base.values import Array, Progress, Tensors
from pipeline.formats.saved_model import models, tfserving_messages
from pipeline.formats.saved_model.messages import Answer, Values

# protobuf 5 calls it always_print_fields_with_no_presence; tritonclient 2.51 and TensorFlow 2.19 keep us at 4
_ALL_FIELDS: Mapping[str, Any] = {"including_default_value_fields": True}


def metadata(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: what TF-Serving answers to ``GET /v1/models/NAME/metadata`` (``name``, ``version``) for that in ``path``.

    Every signature, with all fields, in protobuf's JSON (tensorflow_serving/model_servers/http_rest_api_handler.cc).
    """
    path = Path(values["path"])
    try:
        model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        meta = next(item for item in model.meta_graphs if models.SERVING_TAG in item.meta_info_def.tags)
    except (OSError, StopIteration, DecodeError) as error:
        raise StageError(
            "metadata: not a SavedModel that can be served", found=f"{type(error).__name__}: {error}", where=str(path)
        ) from error
    models.require_signatures(meta.signature_def, path)
    signatures = {
        name: json_format.MessageToDict(meta.signature_def[name], preserving_proto_field_name=True, **_ALL_FIELDS)
        for name in sorted(meta.signature_def)
    }
    spec = {"name": values["name"], "signature_name": "", "version": str(values["version"])}
    return {"metadata": {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}}, {}


def request(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: a serialised PredictRequest, built from the printed ``metadata`` alone, with ``arrays`` by input name."""
    shown = values["metadata"]
    built = _messages()["PredictRequest"]()
    built.model_spec.name = shown["model_spec"]["name"]
    built.model_spec.version.value = int(shown["model_spec"]["version"])
    built.model_spec.signature_name = models.DEFAULT_SIGNATURE
    signature = shown["metadata"]["signature_def"]["signature_def"][models.DEFAULT_SIGNATURE]
    for name, info in signature["inputs"].items():
        content = tf.make_tensor_proto(arrays[name], dtype=types_pb2.DataType.Value(info["dtype"]))
        built.inputs[name].ParseFromString(content.SerializeToString())
    return {}, {"request": np.frombuffer(built.SerializeToString(deterministic=True), np.uint8)}


def answer(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: parse a serialised ``request``, run the SavedModel in ``path`` on it; a serialised PredictResponse."""
    parsed = _messages()["PredictRequest"].FromString(arrays["request"].tobytes())
    served = models.ServedSignature(Path(values["path"]), parsed.model_spec.signature_name)
    feeds = {name: _array(content) for name, content in parsed.inputs.items()}
    built = _messages()["PredictResponse"]()
    built.model_spec.CopyFrom(parsed.model_spec)
    for name, array in served.run(feeds).items():
        built.outputs[name].ParseFromString(tf.make_tensor_proto(array).SerializeToString())
    return {}, {"response": np.frombuffer(built.SerializeToString(deterministic=True), np.uint8)}


def response(values: Values, arrays: Tensors, tell: Progress) -> Answer:
    """Job: the arrays in a serialised PredictResponse, by output name."""
    parsed = _messages()["PredictResponse"].FromString(arrays["response"].tobytes())
    return {}, {name: _array(content) for name, content in parsed.outputs.items()}


def _array(content: Any) -> Array:
    array: Array = tf.make_ndarray(tensor_pb2.TensorProto.FromString(content.SerializeToString()))
    return array


@cache
def _messages() -> Mapping[str, Any]:
    return tfserving_messages.classes(tfserving_messages.PREDICT, (wrappers_pb2.DESCRIPTOR, tensor_pb2.DESCRIPTOR))
