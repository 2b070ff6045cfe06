"""One prediction from a running server: a file in, labels and probabilities (or the raw outputs) out."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import model_config
from pipeline.base.errors import ConfigError, SmokeError
from pipeline.base.triton_facts import NUMPY_TYPES
from pipeline.base.values import Array, Tensors, TensorSpec
from pipeline.data.images import image_layout, plain
from pipeline.images import postprocessing, preprocessing
from pipeline.proof.failures import NoAnswerError, RefusedError
from pipeline.servers.triton.client.connection import Connection, HttpConnection
from pipeline.servers.triton.client.messages import Request, parse_class

_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_ARRAYS = (".npy", ".npz")
_SHOWN_TEXT = 200  # of a refusal, which may be a whole page
_SUMS_TO_ONE = 1e-3  # float16 probabilities of 1000 classes still add up to 1 within this
_TYPES = {kind: dtype for kind, dtype in NUMPY_TYPES.items() if kind != "TYPE_STRING"}


def predict(url: str, model: str, file: Path, *, top: int, request_timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """Send one file to a model over HTTP.

    Args:
        url: ``host:port`` or ``http://host:port``.
        model: its Triton name; the server chooses the version.
        file: an image, ``.npy`` (a model of one input) or ``.npz`` (one array per input, by name); any file for a model
            that takes files as they are, as an ensemble does.
        top: how many classes to return per sample.
        request_timeout_s: longest wait for an answer.

    Returns:
        JSON values. For class scores, per sample, best first: ``label`` (the index where the server has no labels),
        ``index``, ``probability``, and ``sample`` where there are several; an ensemble gives no ``index``.
        Otherwise per output: ``output``, ``dtype``, ``shape``, ``values``.

    Raises:
        ConfigError: the server does not serve the model, or the file does not fit its inputs.
        SmokeError: no server answers there, it is no Triton, or it refuses the request.
    """
    with contextlib.closing(HttpConnection(url, request_timeout_s)) as connection:
        try:
            config = served_config(connection, model, url, "predict")
            inputs = read_inputs(file, config)
            outputs = _ask(connection, model, inputs, config)
            return _rows(connection, model, inputs, outputs, config, top)
        except NoAnswerError as error:
            raise SmokeError(
                f"predict: no answer from {url}",
                found=error.found or error.what,
                hint="start one: python -m pipeline serve REPOSITORY; or name its address with --url",
            ) from error
        except RefusedError as error:
            raise SmokeError(f"predict[{model}]: the server refused the request", found=error.text) from error


def served_config(connection: Connection, model: str, url: str, command: str) -> Any:
    """The configuration in force of a model that is ready.

    Args:
        connection: to the server.
        model: its Triton name.
        url: of the server, for messages.
        command: the same.

    Raises:
        ConfigError: the server does not serve the model.
        SmokeError: what answers there refuses to tell; most often it is no Triton.
        NoAnswerError: no connection, or no answer in time.
    """
    try:
        ready = sorted({row.name for row in connection.index() if row.state == "READY"})
        if model in ready:
            return connection.config(model)
    except RefusedError as error:
        text = " ".join(error.text.split())
        raise SmokeError(
            f"{command}[{model}]: what answers at {url} is no Triton, or does not say what it serves ({error.status})",
            found=text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…",
            hint="name Triton's own address with --url (and --grpc-url)",
        ) from error
    raise ConfigError(f"{command}: no model {model} at {url}", found=f"served there: {', '.join(ready) or 'no model'}")


# ---- the file


def read_inputs(file: Path, config: Any) -> dict[str, Array]:
    """A file's arrays as a model takes them: by input name, in its dtypes, with the batch dimension it has.

    Args:
        file: an image, ``.npy`` (a model of one input) or ``.npz`` (one array per input, by name).
        config: the served ModelConfig message.

    Raises:
        ConfigError: the file is not readable, or does not fit the model's inputs.
    """
    return _batched(_read(file, config), config, file)


def _read(file: Path, config: Any) -> dict[str, Array]:
    """The file's arrays by input name, in the inputs' dtypes."""
    suffix = file.suffix.lower()
    if model_config.takes_files(config):
        return {config.input[0].name: np.array([[_bytes(file)]], np.object_)}
    if suffix not in (*_IMAGES, *_ARRAYS):
        raise ConfigError(
            f"input: {file.suffix or 'a file without suffix'} is not supported",
            where=str(file),
            hint=f"expected {', '.join((*_IMAGES, *_ARRAYS))}",
        )
    if not file.is_file():
        raise ConfigError("input: no such file", where=str(file))
    if suffix in _IMAGES:
        return {config.input[0].name: _read_image(file, config)}
    arrays = _read_arrays(file, config)
    return {tensor.name: _converted(arrays[tensor.name], tensor, file) for tensor in config.input}


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError("input: not a readable file", found=str(error), where=str(file)) from error


def _read_arrays(file: Path, config: Any) -> dict[str, Array]:
    names = [tensor.name for tensor in config.input]
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError("input: not a readable array file", found=str(error), where=str(file)) from error
    if len(names) == 1 and len(arrays) == 1:
        return {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        raise ConfigError(
            f"input: the model takes {len(names)} inputs: {', '.join(names)}",
            found=f"arrays {', '.join(sorted(arrays))}" if "" not in arrays else "one array",
            where=str(file),
            hint="save them by name: numpy.savez(file, " + ", ".join(f"{name}=…" for name in names) + ")",
        )
    return arrays


def _converted(array: Array, tensor: Any, file: Path) -> Array:
    """The array in the input's dtype, where that loses nothing but float precision."""
    dtype = np.dtype(_dtype(tensor))
    converted = array.astype(dtype) if np.can_cast(array.dtype, dtype, "same_kind") else None
    if converted is None or (dtype.kind in "iu" and not np.array_equal(converted, array)):
        raise ConfigError(f"input {tensor.name} takes {dtype}", found=f"an array of {array.dtype}", where=str(file))
    return converted


def _dtype(tensor: Any) -> str:
    if _kind(tensor) not in _TYPES:
        raise ConfigError(f"input {tensor.name} is {_kind(tensor)}, which no image or array file holds")
    return _TYPES[_kind(tensor)]


def _kind(tensor: Any) -> str:
    """TYPE_FP32 and its like."""
    return str(tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name)


def _read_image(file: Path, config: Any) -> Array:
    """One image in the input's geometry; normalised where the configuration's parameters say how."""
    if len(config.input) != 1:
        names = ", ".join(tensor.name for tensor in config.input)
        raise ConfigError(
            f"input: the model takes {len(config.input)} inputs: {names}", found="one image", hint="send an .npz"
        )
    (tensor,) = config.input
    batched = config.max_batch_size > 0
    shape: tuple[int | str, ...] = tuple("D" if size < 0 else size for size in tensor.dims)
    layouts = {tensor.FORMAT_NCHW: "NCHW", tensor.FORMAT_NHWC: "NHWC"}
    spec = TensorSpec(
        name=tensor.name,
        dtype=_dtype(tensor),
        shape=("N", *shape) if batched else shape,
        layout=layouts.get(tensor.format),
    )
    try:
        row = preprocessing.tensor(file.read_bytes(), _preprocessing(config, spec, batched))
    except (OSError, preprocessing.RefusedImage) as error:
        raise ConfigError("input: not a readable image", found=str(error), where=str(file)) from error
    return row[np.newaxis] if len(spec.shape) == 4 else row


def _preprocessing(config: Any, spec: TensorSpec, batched: bool) -> preprocessing.Preprocessing:
    """What the configuration's parameters say, else resized to the input and scaled to 0..1."""
    if "preprocess" in config.parameters:
        try:
            return preprocessing.Preprocessing.from_json(config.parameters["preprocess"].string_value)
        except ValueError as error:
            raise SmokeError("input: the served parameter `preprocess` cannot be read", found=str(error)) from error
    layout = image_layout(spec, batched)
    sizes = spec.shape[-3:]
    channels, height, width = sizes if layout == "NCHW" else (sizes[-1], *sizes[:-1]) if layout else (0, 0, 0)
    if channels not in (1, 3, "D"):
        raise ConfigError(
            f"input {spec.name} is no image",
            found=f"shape {list(spec.shape)}, format {layout or 'none'}",
            hint="an image input is [1 or 3, H, W] or [H, W, 1 or 3]; send an .npy",
        )
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return plain(spec, str(layout), 1 if channels == 1 else 3, size)


def _batched(inputs: Mapping[str, Array], config: Any, file: Path) -> dict[str, Array]:
    """Add the batch dimension where it is missing, and refuse shapes the model does not take."""
    result, wrong = {}, []
    for tensor in config.input:
        array = inputs[tensor.name]
        shape = [*([-1] if config.max_batch_size > 0 else []), *tensor.dims]
        if array.ndim == len(shape) - 1 and shape[0] == -1:
            array = array[np.newaxis]
        fits = array.ndim == len(shape) and all(
            want in (-1, size) for want, size in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wrong.append(f"{tensor.name} takes {shape}, found {list(inputs[tensor.name].shape)} (-1: any size)")
        result[tensor.name] = array
    if not wrong and config.max_batch_size > 0 and len({len(array) for array in result.values()}) > 1:
        wrong.append("the inputs differ in their number of samples")
    if not wrong and any(array.size == 0 for array in result.values()):
        wrong.append("an array is empty")
    if wrong:
        raise ConfigError("input: the arrays do not fit the model", found="\n".join(wrong), where=str(file))
    return result


# ---- the answer


def _ask(connection: Connection, model: str, inputs: Tensors, config: Any) -> dict[str, Array]:
    """All outputs; more samples than the model takes at once go in several requests."""
    names = tuple(output.name for output in config.output)
    limit = config.max_batch_size
    count = len(next(iter(inputs.values()))) if limit else 1
    parts = []
    for start in range(0, count, limit or 1):
        part = {name: array[start : start + limit] if limit else array for name, array in inputs.items()}
        parts.append(connection.infer(Request(model=model, inputs=part, outputs=names)))
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _rows(
    connection: Connection, model: str, inputs: Tensors, outputs: Tensors, config: Any, top: int
) -> list[dict[str, Any]]:
    scores = _scores_output(config)
    if scores is None:
        labelled = _labelled(outputs, top)
        return [_raw(name, array) for name, array in outputs.items()] if labelled is None else labelled
    array = outputs[scores.name]
    table = probabilities(array.reshape(-1, array.shape[-1]))
    labels: dict[int, str] = {}
    if scores.label_filename:
        labels = _labels(connection, model, inputs, config, output=scores.name, count=table.shape[1])
    rows = []
    for sample, row in enumerate(table):
        for index in np.argsort(-row, kind="stable")[:top]:
            found = {"label": labels.get(int(index), str(index)), "index": int(index), "probability": float(row[index])}
            rows.append({"sample": sample, **found} if len(table) > 1 else found)
    return rows


def _labelled(outputs: Tensors, top: int) -> list[dict[str, Any]] | None:
    """The labels that an ensemble answers with as JSON text; None where the answer is something else."""
    array = next(iter(outputs.values()))
    if len(outputs) != 1 or array.dtype != np.object_ or array.size != 1:
        return None
    try:
        return [{"label": row["label"], "probability": row["probability"]} for row in json.loads(array.item())][:top]
    except (ValueError, TypeError, KeyError):
        return None


def _raw(name: str, array: Array) -> dict[str, Any]:
    values = array
    if array.dtype == np.object_:
        texts = [item.decode(errors="replace") for item in array.reshape(-1)]
        values = np.array(texts, np.object_).reshape(array.shape)
    return {"output": name, "dtype": str(array.dtype), "shape": list(array.shape), "values": values.tolist()}


def _scores_output(config: Any) -> Any:
    """The output that ranks classes: the one with labels, or the only one if it is a vector of floats per sample."""
    vectors = [output for output in config.output if _is_vector(output, batching=config.max_batch_size > 0)]
    labelled = [output for output in vectors if output.label_filename]
    if labelled:
        return labelled[0]
    return vectors[0] if vectors and len(config.output) == 1 else None


def _is_vector(output: Any, *, batching: bool) -> bool:
    dims = list(output.dims)
    if not batching and dims[0] in (-1, 1):
        dims = dims[1:]  # a leading dimension of samples that Triton does not know as a batch
    return "FP" in _kind(output) and len(dims) == 1 and dims[0] != 1


def probabilities(rows: Array) -> Array:
    """Scores ``[samples, classes]`` as float64 probabilities.

    Rows that are probabilities stay as they are, rows of log-probabilities are exponentiated, anything else goes
    through softmax.
    """
    values = rows.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=_SUMS_TO_ONE):
        return values
    logarithms = (values <= 0).all() and np.allclose(np.exp(values).sum(axis=1), 1.0, atol=_SUMS_TO_ONE)
    return postprocessing.probabilities(values, "exp" if logarithms else "softmax")


def _labels(
    connection: Connection, model: str, inputs: Tensors, config: Any, *, output: str, count: int
) -> dict[int, str]:
    """Label of every class, by the classification extension: only the server has the label file."""
    leading = {tensor.name: config.max_batch_size > 0 or tensor.dims[0] == -1 for tensor in config.input}
    first = {name: array[:1] if leading[name] else array for name, array in inputs.items()}
    answer = connection.infer(Request(model=model, inputs=first, outputs=(output,), classes=count))[output]
    parsed = [parse_class(value) for value in answer.reshape(-1)]
    return {item.index: item.label for item in parsed if item.label}
