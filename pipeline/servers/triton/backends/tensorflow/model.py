"""Stands in for Triton's C++ tensorflow backend where that one is not installed.

Loads, refuses and answers SavedModels as triton-inference-server/tensorflow_backend at r24.10 does (src/tensorflow.cc,
tensorflow_utils.cc, mirror/tensorflow_backend_tf.cc), with the same wording, so that a model served here is one the
real backend would serve. Each instance is a process of its own, so MAX_SESSION_SHARE_COUNT has nothing to share.
"""

import json
import os

import numpy as np
import stand_in

RefusedError = stand_in.RefusedError

_BACKEND = stand_in.facts.BACKENDS["tensorflow"]
_TAG, _SIGNATURE = "serve", "serving_default"  # what the C++ backend takes where the parameters say nothing
# tensorflow.DataType (types.proto) by number; what is not here is one Triton has not
_CONFIG_TYPES = {
    1: "TYPE_FP32", 2: "TYPE_FP64", 3: "TYPE_INT32", 4: "TYPE_UINT8", 5: "TYPE_INT16", 6: "TYPE_INT8",
    7: "TYPE_STRING", 9: "TYPE_INT64", 10: "TYPE_BOOL", 17: "TYPE_UINT16", 19: "TYPE_FP16", 22: "TYPE_UINT32",
    23: "TYPE_UINT64",
}  # fmt: skip
_NO_ENDPOINTS = ("__saved_model_init_op", "__saved_model_train_op")


class TritonPythonModel(stand_in.Model):
    """One instance of one SavedModel."""

    def initialize(self, args):
        """Open the model and check it against its configuration; an exception here fails the load."""
        config = json.loads(args["model_config"])
        self._name = config["name"]
        if config.get("platform") != _BACKEND.platform:
            raise RefusedError(
                f"platform {config.get('platform', '')} not supported for TensorFlow model '{self._name}'"
            )
        stand_in.refuse_unsupported(config)
        if args["model_instance_kind"] == "GPU":
            raise RefusedError("KIND_GPU is not supported by this stand-in backend; use the container")
        for item in (*config["input"], *config["output"]):
            if item["data_type"] not in _BACKEND.types:
                raise RefusedError(
                    f"unsupported datatype '{item['data_type']}' for tensor '{item['name']}' for model '{self._name}'"
                )
        path = stand_in.model_file(args, config, _BACKEND.file_name)
        stand_in.require_file(path, self._name)
        definition = self._open(path, stand_in.Parameters(config))
        self._inputs = _checked_inputs(definition, config)
        self._fetched = _checked_outputs(definition, config)
        self._serve(config)

    def _open(self, path, parameters):
        """Load the SavedModel into a session; its signature's definition."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # KIND_CPU: the GPU's memory is not its own
        import tensorflow as tf  # slow to import, so not while the stub only looks at this file

        options = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=_threads(parameters, _BACKEND.threads[0], self._name),
            inter_op_parallelism_threads=_threads(parameters, _BACKEND.threads[1], self._name),
            use_per_session_threads=parameters.boolean("TF_USE_PER_SESSION_THREADS", False),
        )
        tag = parameters.text("TF_GRAPH_TAG") or _TAG
        self._failures = (tf.errors.OpError, ValueError, TypeError)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, [tag], str(path))
        except (OSError, RuntimeError, *self._failures) as error:
            raise RefusedError(str(error)) from error
        return _definition(meta.signature_def, parameters.text("TF_SIGNATURE_DEF") or "")

    def _run(self, inputs):
        feeds = {self._inputs[name]: array for name, array in inputs.items()}
        try:
            return [np.asarray(array) for array in self._session.run(self._fetched, feeds)]
        except self._failures as error:
            raise RefusedError(str(error)) from error


def _threads(parameters, key, name):
    count = parameters.integer(key, 0)
    if count < 0:
        raise RefusedError(f"parameter '{key}' must be non-negative number for TensorFlow model '{name}'")
    return count


def _definition(signatures, wanted):
    """The signature asked for; where none is, serving_default, or else the first there is."""
    key = wanted or _SIGNATURE
    if key not in signatures and not wanted:
        key = next((name for name in sorted(signatures) if name not in _NO_ENDPOINTS), key)
    if key not in signatures:
        raise RefusedError(f"unable to load model '{key}', expected '{key}' signature")
    return signatures[key]


def _checked_inputs(definition, config):
    """Refuse inputs that the signature does not have as configured; the graph's tensor by input name."""
    controls = [name for name, _ in stand_in.sequence_controls(config)]
    for control in controls:
        stand_in.check_control(control, definition.inputs)
    stand_in.check_names(config["input"], definition.inputs, "input")
    stand_in.check_count(config["name"], len(config["input"]) + len(controls), len(definition.inputs))
    for item in config["input"]:
        _check_tensor(item, definition.inputs[item["name"]], "input", config)
    return {name: info.name for name, info in definition.inputs.items()}


def _checked_outputs(definition, config):
    """Refuse outputs that the signature does not have as configured; the graph's tensors in their order."""
    stand_in.check_names(config["output"], definition.outputs, "output")
    for item in config["output"]:
        _check_tensor(item, definition.outputs[item["name"]], "output", config)
    return [definition.outputs[item["name"]].name for item in config["output"]]


def _check_tensor(item, info, role, config):
    """The C++ backend's checks of one configured input or output: its dims, then its data type."""
    shape = [] if info.tensor_shape.unknown_rank else [dim.size for dim in info.tensor_shape.dim]
    if shape:
        stand_in.check_dims(config, item, shape, exact=role == "output")
    kind = _CONFIG_TYPES.get(info.dtype, "TYPE_<invalid>")
    if kind != item["data_type"]:
        raise RefusedError(
            f"unable to load model '{config['name']}', configuration expects datatype {item['data_type']} for {role} "
            f"'{item['name']}', model provides {kind}"
        )
