"""TorchServe's handler: requests in, one forward pass per batch, each request's own answer out.

Copied as it is into the archive, with preprocessing.py and postprocessing.py beside it, so it imports nothing of this
package. What it must know of the model stands in model-config.yaml under ``handler``; labels in index_to_name.json.

A request is one of three things:

- an image file, where the model has ``preprocess``;
- tensors by input name, or the only input's bare: JSON lists, or .npy bytes (one form field or gRPC input each);
- a request of KServe's protocol v2 (``inputs`` with name, datatype, shape and data), at ``/v2/models/NAME/infer`` and
  over gRPC. TorchServe hands its body through whatever the route, so no ``service_envelope`` is needed; that one
  (0.12.0) reads the first request of a batch only, and loses dtype, shape and output names.

Shapes are the model's own, batch included, so a request may hold several samples. Requests of equal shapes share a
forward pass. A wrong one is refused alone; the status goes into the body too, since TorchServe 0.12.0 drops it on gRPC.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from postprocessing import Postprocessing, ranked
from preprocessing import Preprocessing, tensor

Array = npt.NDArray[Any]

_NPY = b"\x93NUMPY"
_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_ANONYMOUS = ("body", "data")  # what TorchServe calls a body, and the first form field in its own examples


class Handler:
    """One worker's model. TorchServe wants exactly one class in this file."""

    def initialize(self, context: Any) -> None:
        """Open the model; an exception here is the worker's end, and is told in the server's log."""
        warnings.filterwarnings("ignore", module="PIL")  # of odd files that it reads all the same
        folder = Path(context.system_properties["model_dir"])
        config = context.model_yaml_config
        settings = config["handler"]
        self._inputs = {spec["name"]: spec for spec in settings["inputs"]}
        self._outputs = settings["outputs"]
        self._batched = settings["batched"]
        image, answer = settings.get("preprocess"), settings.get("postprocess")
        self._image = Preprocessing.from_json(json.dumps(image)) if image else None
        self._scores = settings.get("scores", "")
        self._answer = _with_labels(Postprocessing.from_json(json.dumps(answer)), folder) if answer else None
        self._name, self._version = context.manifest["model"]["modelName"], context.manifest["model"]["modelVersion"]
        gpu = context.system_properties.get("gpu_id")
        self._device = torch.device("cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}")
        # all workers' threads together are as many as there are processors: more of them wait for each other
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config["maxWorkers"]))
        path = folder / context.manifest["model"]["serializedFile"]
        self._model = torch.jit.load(str(path), map_location=self._device).eval()

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[str]:
        """Answer the requests of one batch, in their order."""
        read = [self._read(row) for row in data]
        answers: list[str] = [""] * len(read)
        groups: dict[Any, list[int]] = {}
        for index, (_, found) in enumerate(read):
            if isinstance(found, str):
                answers[index] = self._refused(context, index, read[index][0], 400, found)
            else:
                key = tuple(array.shape[1:] for array in found.values()) if self._batched else index
                groups.setdefault(key, []).append(index)
        for members in groups.values():
            for index, outputs in zip(members, self._run([read[index][1] for index in members]), strict=True):
                if isinstance(outputs, str):
                    answers[index] = self._refused(context, index, read[index][0], 500, outputs)
                    continue
                context.set_response_header(index, "x-batch-size", str(len(members)))
                answers[index] = self._answered(context, index, read[index][0], outputs)
        return answers

    # ---- in

    def _read(self, row: Mapping[str, Any]) -> tuple[Any, Any]:
        """A request's protocol-v2 body, else None; and its tensors by input name, or the reason it is refused."""
        question = None
        try:
            values = {name: self._decoded(value) for name, value in row.items()} or {"body": self._decoded(b"")}
            name, body = next(iter(values.items()))
            if len(values) == 1 and _is_v2(body):
                question = body
                values = {item["name"]: _v2_array(item) for item in body["inputs"]}
            elif len(values) == 1 and isinstance(body, dict):
                values = body
            elif len(values) == len(self._inputs) == 1 and name in _ANONYMOUS:
                values = {next(iter(self._inputs)): body}
            return question, self._checked(values)
        except Exception as error:  # noqa: BLE001 - one request shall not fail the others of its batch
            return question, _reason(error)

    def _decoded(self, value: Any) -> Any:
        """What bytes stand for, by how they begin; TorchServe decodes JSON itself where its content type is given.

        Raises:
            ValueError: no JSON, no .npy, and no image where the model takes one.
        """
        if not isinstance(value, (bytes, bytearray)):
            return value
        data = bytes(value)
        if data.startswith(_NPY):
            return _npy(data)
        if data.lstrip()[:1] in (b"{", b"["):
            return json.loads(data)
        if self._image is None:
            raise ValueError(f"{len(data)} bytes that are neither .npy nor JSON")
        array = tensor(data, self._image)
        return array[np.newaxis] if self._batched else array

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """The values as arrays of the model's names, dtypes and shapes, in its order.

        Raises:
            ValueError: they are not; says what was expected.
        """
        if set(values) != set(self._inputs):
            raise ValueError(f"inputs are {', '.join(map(str, values)) or 'none'}; expected {', '.join(self._inputs)}")
        sizes: dict[str, int] = {}
        arrays = {}
        for name, spec in self._inputs.items():
            array = _as_dtype(name, values[name], spec["dtype"])
            wanted = spec["shape"]
            fits = len(array.shape) == len(wanted) and all(
                size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
                for size, dim in zip(array.shape, wanted, strict=True)
            )
            if not fits or (self._batched and not array.shape[0]):
                shape = ", ".join(map(str, wanted))
                raise ValueError(f"input {name} has shape {list(array.shape)}; expected [{shape}]")
            arrays[name] = array
        return arrays

    # ---- through the model

    def _run(self, requests: Sequence[Mapping[str, Array]]) -> list[Any]:
        """Outputs by name for each request, or why the model failed on it; one forward pass unless it fails."""
        try:
            joined = {
                name: np.concatenate([request[name] for request in requests])
                if len(requests) > 1
                else requests[0][name]
                for name in self._inputs
            }
            outputs = self._forward(joined)
            if len(requests) == 1:
                return [outputs]
            ends = np.cumsum([len(next(iter(request.values()))) for request in requests])[:-1]
            parts = {name: np.split(array, ends) for name, array in outputs.items()}
            return [{name: rows[index] for name, rows in parts.items()} for index in range(len(requests))]
        except Exception as error:  # noqa: BLE001 - whatever the model raises on one sample
            if len(requests) > 1:  # each alone, so that only the guilty one fails
                return [answer for request in requests for answer in self._run([request])]
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return [f"the model failed: {lines[-1]}"]

    def _forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            result = self._model(**{name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()})
        values = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        return {spec["name"]: value.cpu().numpy() for spec, value in zip(self._outputs, values, strict=True)}

    # ---- out

    def _answered(self, context: Any, index: int, question: Any, outputs: Mapping[str, Array]) -> str:
        try:
            answer = self._told(context, index, question, outputs)
        except Exception as error:  # noqa: BLE001 - one answer that cannot be told shall not cost the others
            return self._refused(context, index, question, 500, _reason(error))
        context.set_response_content_type(index, "application/json")
        return answer

    def _told(self, context: Any, index: int, question: Any, outputs: Mapping[str, Array]) -> str:
        if question is not None:
            tensors = [_v2_tensor(name, array) for name, array in outputs.items()]
            return json.dumps({**self._v2_head(context, index, question), "outputs": tensors})
        if self._answer is None:
            return json.dumps({name: array.tolist() for name, array in outputs.items()})
        scores = outputs[self._scores]
        rows = [ranked(row, self._answer) for row in (scores if self._batched else scores[np.newaxis])]
        return json.dumps(rows[0] if len(rows) == 1 else rows, ensure_ascii=False)

    def _refused(self, context: Any, index: int, question: Any, code: int, message: str) -> str:
        kind, phrase = ("BadRequestException", "Bad Request") if code == 400 else ("ModelException", "Model Failed")
        context.set_response_status(code, phrase, index)
        context.set_response_content_type(index, "application/json")
        answer: dict[str, Any] = {"code": code, "type": kind, "message": message}
        if question is not None:
            # TorchServe 0.12.0 reads these fields for gRPC, and its worker dies where one is missing
            outputs = [{"name": "error", "datatype": "BYTES", "shape": [1], "data": [message]}]
            answer = {**self._v2_head(context, index, question), "error": message, "outputs": outputs}
        return json.dumps(answer)

    def _v2_head(self, context: Any, index: int, question: Mapping[str, Any]) -> dict[str, Any]:
        identity = str(question.get("id") or context.get_request_id(index))
        return {"id": identity, "model_name": self._name, "model_version": self._version}


def _reason(error: Exception) -> str:
    """What an error says; its name too, unless it was raised for whoever asks."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _with_labels(answer: Postprocessing, folder: Path) -> Postprocessing:
    path = folder / "index_to_name.json"
    if not path.is_file():
        return answer
    names = json.loads(path.read_text(encoding="utf-8"))
    return replace(answer, labels=tuple(names[str(index)] for index in range(len(names))))


def _is_v2(body: Any) -> bool:
    inputs = body.get("inputs") if isinstance(body, dict) else None
    return isinstance(inputs, list) and all(isinstance(item, dict) and "name" in item for item in inputs)


def _npy(data: bytes) -> Array:
    """The array of .npy bytes.

    Raises:
        ValueError: not readable, or an array of objects, which only pickle could read.
    """
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
        return array
    except Exception as error:  # numpy reads a header as Python, so it may raise whatever that parser does
        raise ValueError(f"no readable .npy: {_reason(error)}") from error


def _as_dtype(name: str, value: Any, dtype: str) -> Array:
    """The value as an array; numbers of JSON are taken where nothing of them is lost but a float's last digits.

    Raises:
        ValueError: an array of another dtype, or values it cannot hold.
    """
    if isinstance(value, np.ndarray):
        if value.dtype != dtype:
            raise ValueError(f"input {name} is {value.dtype}; expected {dtype}")
        return np.ascontiguousarray(value)
    wanted = np.dtype(dtype)
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"input {name}: rows of different lengths") from error
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[wanted.kind]
    if found.size and found.dtype.kind not in kinds:
        raise ValueError(f"input {name}: expected numbers for {dtype}")
    with np.errstate(over="ignore"):
        array = found.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(array, found):
        raise ValueError(f"input {name}: a value that {dtype} cannot hold")
    return array


def _v2_array(item: Mapping[str, Any]) -> Array:
    """A tensor of protocol v2.

    Raises:
        ValueError: data, datatype and shape do not belong together.
    """
    dtype = next((dtype for dtype, datatype in _DATATYPES.items() if datatype == item.get("datatype")), None)
    if dtype is None:
        raise ValueError(f"input {item['name']}: unknown datatype {item.get('datatype')}")
    array = _as_dtype(item["name"], item.get("data", []), dtype)
    shape = item.get("shape", [])
    if any(not isinstance(size, int) or size < 0 for size in shape) or array.size != math.prod(shape):
        raise ValueError(f"input {item['name']}: {array.size} values for shape {shape}")
    return array.reshape(shape)


def _v2_tensor(name: str, array: Array) -> dict[str, Any]:
    """A tensor for protocol v2, flat as its gRPC side needs it; that has no field for FP16, which goes as FP32."""
    datatype = "FP32" if array.dtype == np.float16 else _DATATYPES[str(array.dtype)]
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
