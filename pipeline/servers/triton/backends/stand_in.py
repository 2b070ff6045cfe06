"""What Triton's C++ backends have in common, for the Python backends that stand in for them.

Runs inside Triton's Python stub, where this project's package cannot be imported: each backend's folder, the only one
of ours on the stub's import path, gets a copy. Rules and wording are those of triton-inference-server/backend
(src/backend_common.cc, backend_model.cc, backend_output_responder.cc) at r24.10, or of the backends that call these.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import triton_facts as facts
import triton_python_backend_utils as pb_utils

_CONFIG_TYPES = {np.dtype(kind): name for name, kind in facts.NUMPY_TYPES.items()}
_BOOLEANS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}


class RefusedError(Exception):
    """The model cannot be loaded as its configuration says, or a request cannot be answered."""


class Parameters:
    """The ``parameters`` of a model configuration, parsed as the C++ backends parse them."""

    def __init__(self, config):
        self._values = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}

    def text(self, key):
        """The value as text, or None when it is not set."""
        return self._values.get(key)

    def integer(self, key, default):
        """The value as a whole number; see ``leading_integer``."""
        text = self._values.get(key)
        if text is None:
            return default
        number = leading_integer(text)
        if number is None:
            raise RefusedError(f"failed to convert '{text}' to integral number")
        return number

    def boolean(self, key, default):
        """The value as true/on/1 or false/off/0, in any case of letters."""
        text = self._values.get(key)
        if text is None:
            return default
        if text.lower() not in _BOOLEANS:
            raise RefusedError(f"failed to convert '{text}' to boolean")
        return _BOOLEANS[text.lower()]


def leading_integer(text):
    """A text's value by the rules of C++ ``std::stoi``: leading digits count, the rest is ignored; else None."""
    digits = re.match(r"\s*[+-]?\d+", text)
    return int(digits.group()) if digits else None


def shape_text(shape):
    """``[-1,3]``: a shape as Triton prints it."""
    return "[" + ",".join(str(size) for size in shape) + "]"


def config_type(dtype):
    """``TYPE_FP32`` for a numpy dtype; ``TYPE_<invalid>`` for one Triton has not."""
    return _CONFIG_TYPES.get(np.dtype(dtype), "TYPE_<invalid>")


def dims_of(tensor):
    """The shape the backend sees, without the batch dimension: ``reshape`` if there is one, else ``dims``."""
    shape = tensor["reshape"].get("shape", []) if "reshape" in tensor else tensor["dims"]
    return tuple(int(size) for size in shape)


def check_dims(config, item, shape, *, exact):
    """Refuse configured dims that are not the model's, in the words of the onnxruntime and the tensorflow backend.

    Args:
        config: the model configuration.
        item: the configured input or output.
        shape: the model's, -1 for a dynamic dimension; not empty.
        exact: a dynamic dimension of the model takes only a dynamic one, not any size.
    """
    batched = int(config["max_batch_size"]) > 0
    if batched and shape[0] != -1:
        raise RefusedError(
            f"model '{config['name']}', tensor '{item['name']}': for the model to support batching the shape should "
            "have at least 1 dimension and the first dimension must be -1; but shape expected by the model is "
            f"{shape_text(shape)}"
        )
    full = [*([-1] if batched else []), *dims_of(item)]
    pairs = zip(shape, full, strict=False)
    if len(shape) != len(full) or any(model != configured for model, configured in pairs if exact or model != -1):
        raise other_dims(config["name"], item["name"], shape, full, batched=batched)


def other_dims(name, tensor, shape, full, *, batched):
    """The refusal of dims that are not the model's ``shape``; ``full`` are those configured, with the batch."""
    specified = f"(shape {shape_text(full)})"
    if batched:
        specified = (
            "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making "
            f"complete shape {shape_text(full)})"
        )
    return RefusedError(
        f"model '{name}', tensor '{tensor}': the model expects {len(shape)} dimensions (shape {shape_text(shape)}) but "
        f"the model configuration specifies {len(full)} dimensions {specified}"
    )


def check_names(items, known, role):
    """Refuse inputs or outputs that the model does not have."""
    for item in items:
        if item["name"] not in known:
            allowed = ", ".join(sorted(known))
            raise RefusedError(f"unexpected inference {role} '{item['name']}', allowed {role}s are: {allowed}")


def check_count(name, expected, found):
    """Refuse another number of inputs."""
    if found != expected:
        raise RefusedError(
            f"unable to load model '{name}', configuration expects {expected} inputs, model provides {found}"
        )


def check_control(control, known):
    """Refuse a sequence control that is no input of the model."""
    if control not in known:
        raise RefusedError(
            f"configuration specified sequence control '{control}', but model does not provide that input"
        )


def check_supported(item, backend, what):
    """Refuse a data type that a backend does not take; ``what`` names the tensor and the model."""
    if item["data_type"] not in backend.types:
        raise RefusedError(f"unsupported datatype {item['data_type']} for {what}")


def texts(array):
    """The elements of an array of text, which the server hands over as bytes."""
    return [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]


def model_file(args, config, default, capability=None):
    """Path of the model file named by the configuration, which may not exist.

    Args:
        args: what ``initialize`` was given.
        config: the model configuration.
        default: file name when the configuration names none.
        capability: the GPU's compute capability (``8.9``), where the backend knows it.
    """
    by_capability = config.get("cc_model_filenames", {}) if args["model_instance_kind"] == "GPU" else {}
    if by_capability and capability is None:
        raise RefusedError("cc_model_filenames is not supported by this stand-in backend; use the container")
    # An unlisted capability gets the default, silently, as in the C++ backends.
    name = by_capability.get(capability) or config.get("default_model_filename") or default
    return Path(args["model_repository"]) / args["model_version"] / name


def require_file(path, model_name):
    """Refuse a model whose file is not there, in the C++ backends' words."""
    if not path.exists():
        raise RefusedError(f"unable to find '{path}' for model instance '{model_name}'")


def refuse_unsupported(config):
    """Refuse what the C++ backends can do and a Python backend cannot, instead of answering wrongly."""
    found = [key for key in ("batch_input", "batch_output") if config.get(key)]
    found += ["allow_ragged_batch" for tensor in config["input"] if tensor.get("allow_ragged_batch")]
    if config.get("sequence_batching", {}).get("state"):
        found.append("sequence_batching.state")
    if config.get("model_transaction_policy", {}).get("decoupled"):
        found.append("model_transaction_policy.decoupled")
    if found:
        raise RefusedError(f"{found[0]} is not supported by this stand-in backend; use the container")


def sequence_controls(config):
    """The sequence batcher's control tensors, which reach the model as inputs: (name, config data type) of each."""
    controls = []
    for control_input in config.get("sequence_batching", {}).get("control_input", []):
        for control in control_input.get("control", []):
            kinds = [kind for field, kind in facts.FALSE_TRUE.items() if control.get(field)]
            controls.append((control_input["name"], kinds[0] if kinds else control.get("data_type", "")))
    return controls


class Output:
    """One configured output: what the server promised its clients, checked on every answer.

    Triton's core passes on whatever dtype and shape a Python backend returns.
    """

    def __init__(self, tensor, batched):
        self.name = tensor["name"]
        self.config_type = tensor["data_type"]
        self.dtype = np.dtype(facts.NUMPY_TYPES[tensor["data_type"]])
        self.dims = dims_of(tensor)
        self._batched = batched
        self._fixed = self.dims if all(size >= 0 for size in self.dims) else None

    def check(self, array, rows):
        """Refuse an output for a batch of so many rows of another dtype or shape."""
        if array.dtype != self.dtype:
            raise RefusedError(
                f"configuration expects datatype {self.config_type} for output '{self.name}', "
                f"model provides {config_type(array.dtype)}"
            )
        shape = array.shape
        if self._batched:
            if not shape or shape[0] != rows:
                raise RefusedError(
                    f"failed to split the output tensor '{self.name}' in responses: expected batch size of "
                    f"at least {rows} in model output, got {shape[0] if shape else 'a scalar'}"
                )
            shape = shape[1:]
        if shape != self._fixed and not self._fits(shape):
            expected = ((-1,) if self._batched else ()) + self.dims
            raise RefusedError(
                f"output '{self.name}' has shape {shape_text(array.shape)}, "
                f"the model configuration specifies {shape_text(expected)}"
            )

    def _fits(self, shape):
        sizes = zip(shape, self.dims, strict=False)
        return len(shape) == len(self.dims) and all(limit in (-1, size) for size, limit in sizes)


def _joined(parts):
    """The inputs of several requests as one batch; those of a single one are not copied."""
    if len(parts) == 1:
        return parts[0]
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except (KeyError, ValueError) as error:
        raise RefusedError(f"requests of one batch differ in inputs or shapes: {error}") from error


class Batcher:
    """Turns the requests of one execution into one run of the model, and its outputs into responses.

    Args:
        name: the model's name.
        max_batch_size: the configuration's; 0 for a model without a batch dimension.
        outputs: the configured outputs.
        run: takes input arrays by name; returns the outputs' arrays, in the order of ``outputs``; raises
            RefusedError.
    """

    def __init__(self, name, max_batch_size, outputs, run):
        self._name, self._limit, self._outputs, self._run = name, max_batch_size, outputs, run

    def execute(self, requests):
        """One response per request; a failed run fails all its requests, as in the C++ backends."""
        try:
            return self._answers(requests)
        except RefusedError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]

    def _answers(self, requests):
        parts = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        rows = [next(iter(part.values())).shape[0] if self._limit else 1 for part in parts]
        total = sum(rows)
        if total != 1 and total > self._limit:
            raise RefusedError(f"batch size {total} for '{self._name}', max allowed is {self._limit}")
        arrays = self._run(_joined(parts))
        for output, array in zip(self._outputs, arrays, strict=True):
            output.check(array, total)
        if len(rows) == 1:
            return [self._response(arrays)]
        starts = np.cumsum([0, *rows]).tolist()
        return [self._response([array[start:end] for array in arrays]) for start, end in itertools.pairwise(starts)]

    def _response(self, arrays):
        tensors = [pb_utils.Tensor(output.name, array) for output, array in zip(self._outputs, arrays, strict=True)]
        return pb_utils.InferenceResponse(tensors)


class Model:
    """What the stub calls of a backend; ``initialize`` ends with ``_serve``, and ``_run`` is a Batcher's."""

    def execute(self, requests):
        """Answer the requests of one batch with one run of the model."""
        return self._batcher.execute(requests)

    def _serve(self, config):
        limit = int(config["max_batch_size"])
        outputs = [Output(item, limit > 0) for item in config["output"]]
        self._batcher = Batcher(config["name"], limit, outputs, self._run)
