"""Stands in for Triton's C++ tensorrt backend where that one is not installed; and as tensorrt_rtx, which has none.

Loads, refuses and answers as triton-inference-server/tensorrt_backend at r24.10 does (src/instance_state.cc,
model_state.cc, tensorrt_utils.cc, loader.cc), with the same wording, so that an engine served here is one the real
backend would serve. What that refuses only while it completes a configuration is refused always. Each instance is a
process of its own; CUDA graphs and stream priorities, which change no answer, are not reproduced. Served on no GPU yet.
"""

import json
from pathlib import Path

import engine_session
import stand_in

RefusedError = stand_in.RefusedError
shape_text = stand_in.shape_text

_FLAVOUR = Path(__file__).resolve().parent.name
_BACKEND = stand_in.facts.BACKENDS[_FLAVOUR]
# TensorRT's types to the configuration's; a type that is not here is one Triton cannot carry
_CONFIG_TYPES = {"BF16": "TYPE_BF16"} | {
    kind: stand_in.config_type(dtype) for kind, dtype in engine_session.NUMPY.items()
}


class TritonPythonModel(stand_in.Model):
    """One instance of one engine."""

    def initialize(self, args):
        """Open the engine and check it against its configuration; an exception here fails the load."""
        config = json.loads(args["model_config"])
        name, self._instance = config["name"], args["model_instance_name"]
        if args["model_instance_kind"] != "GPU":
            raise RefusedError(f"unable to load model '{name}', TensorRT backend supports only GPU device")
        stand_in.refuse_unsupported(config)
        device = int(args["model_instance_device_id"])
        try:
            capability = engine_session.compute_capability(device)
        except engine_session.SessionError as error:
            raise RefusedError(f"unable to set device for {name}: {error}") from error
        path = stand_in.model_file(args, config, _BACKEND.file_name, capability)
        stand_in.require_file(path, self._instance)
        try:
            self._session = engine_session.Session(_FLAVOUR, path.read_bytes(), device)
        except engine_session.SessionError as error:
            raise RefusedError(f"unable to create TensorRT engine: {error}") from error
        self._profiles = _profiles(self._session.profiles, config, self._instance)
        _check(self._session, self._profiles, config, self._instance)
        self._output_names = [item["name"] for item in config["output"]]
        self._serve(config)

    def _run(self, inputs):
        shapes = {name: array.shape for name, array in inputs.items()}
        index = engine_session.fitting(self._profiles, shapes)
        if index is None:  # as the C++ backend: the first one says what is wrong
            index = next(iter(self._profiles))
        for name, shape in shapes.items():
            if problem := engine_session.misfit(shape, self._profiles[index][name]):
                raise RefusedError(
                    f"request specifies invalid shape for input '{name}' for {self._instance}. Error details: {problem}"
                )
        try:
            results = self._session.run(inputs, index)
        except engine_session.SessionError as error:
            raise RefusedError(f"unable to enqueue for inference {self._instance}: {error}") from error
        return [results[name] for name in self._output_names]


def _profiles(all_profiles, config, instance):
    """The optimization profiles that the instance's group names, by index in ascending order; the first if none.

    For tensorrt_rtx all of them: the core lets only models of the platform tensorrt_plan name any.
    """
    if _FLAVOUR == "tensorrt_rtx":
        return dict(all_profiles)
    # the core names instances <group>_<number>
    groups = [group for group in config["instance_group"] if group["name"] == instance.rpartition("_")[0]]
    named = [name for group in groups for name in group.get("profile", [])] or ["0"]
    indices = set()
    for name in named:
        index = stand_in.leading_integer(name)
        if index is None:
            raise RefusedError(f"unable to parse '{name}': stoi" if name else "profile name must not be empty")
        if index not in all_profiles:
            raise RefusedError(
                f"Can not set the specified optimization profile {name}[{index}] for {instance}. Expected optimization "
                f"profile index range 0-{len(all_profiles) - 1}"
            )
        indices.add(index)
    return {index: all_profiles[index] for index in sorted(indices)}


def _check(session, profiles, config, instance):
    """Refuse a configuration that is not the engine's."""
    name, limit = config["name"], int(config["max_batch_size"])
    held = {"input": {item.name: item for item in session.inputs}, "output": {o.name: o for o in session.outputs}}
    if len(held["input"]) < len(config["input"]):
        raise RefusedError(
            f"unable to load model '{name}', configuration expects {len(config['input'])} inputs, model provides at "
            f"most {len(held['input'])}"
        )
    for role, tensors in held.items():
        stand_in.check_names(config[role], tensors, role)
    for role, tensors in held.items():
        for item in config[role]:
            _check_kind(item, tensors[item["name"]], f"{role} '{item['name']}' for model '{name}'")
    _check_batch(profiles, name, limit)
    for item in config["input"]:
        tensor = held["input"][item["name"]]
        _check_type(tensor, item["data_type"], "input", instance)
        _check_dims(tensor, stand_in.dims_of(item), name, limit > 0)
        _check_ranges(tensor, stand_in.dims_of(item), profiles, name, limit > 0)
    for control, data_type in stand_in.sequence_controls(config):
        _check_control(held["input"], control, data_type, config, instance)
    for item in config["output"]:
        tensor = held["output"][item["name"]]
        _check_type(tensor, item["data_type"], "output", instance)
        _check_dims(tensor, stand_in.dims_of(item), name, limit > 0)
    controls = {control for control, _ in stand_in.sequence_controls(config)}
    for role, tensors in held.items():
        absent = sorted(tensors.keys() - {item["name"] for item in config[role]} - controls)
        if absent:
            raise RefusedError(f"expected configuration for {role} '{absent[0]}' for {instance}")


def _check_kind(item, tensor, what):
    """Refuse a data type, a shape tensor or a layout that is not what the engine has, or not to be had here."""
    stand_in.check_supported(item, _BACKEND, what)
    marked = bool(item.get("is_shape_tensor", False))
    if tensor.is_shape and not marked:
        raise RefusedError(f"{what} is a shape tensor but the model configuration doesn't mark it as a shape tensor.")
    if marked and not tensor.is_shape:
        raise RefusedError(f"{what} is incorrectly marked as a shape tensor in the model configuration.")
    marked = bool(item.get("is_non_linear_format_io", False))
    if marked == tensor.is_linear:
        uses = "a linear" if tensor.is_linear else "a non-linear"
        raise RefusedError(
            f"{what} uses {uses} IO format, but 'is_non_linear_format_io' is incorrectly set to "
            f"{'true' if marked else 'false'} in the model configuration."
        )
    for found, true in (
        ("is_shape_tensor", tensor.is_shape),
        ("is_non_linear_format_io", not tensor.is_linear),
        ("TYPE_BF16", item["data_type"] == "TYPE_BF16"),
    ):
        if true:
            raise RefusedError(f"{found} is not supported by this stand-in backend; use the container")


def _check_batch(profiles, name, limit):
    """Refuse a batch limit over what the profiles take, as the C++ backend does while it completes a configuration."""
    largest = max(
        min((span.max[0] for span in profile.values() if span.max), default=0) for profile in profiles.values()
    )
    if limit > largest:
        raise RefusedError(
            f"autofill failed for model '{name}': configuration specified max-batch {limit} but TensorRT engine only "
            f"supports max-batch {largest}"
        )


def _check_type(tensor, data_type, role, instance):
    found = _CONFIG_TYPES.get(tensor.kind, "TYPE_<invalid>")
    if data_type != found:
        raise RefusedError(
            f"unexpected datatype {found} for inference {role} '{tensor.name}', expecting {data_type} for {instance}"
        )


def _check_dims(tensor, dims, name, batched):
    """``dims`` are the configuration's; a dimension that is dynamic on either side may be any size."""
    if batched and not tensor.shape:
        raise RefusedError(
            f"model '{name}', tensor '{tensor.name}': for the model to support batching the shape should have at least "
            f"1 dimension; but shape expected by the model is {shape_text(tensor.shape)}"
        )
    full = (-1, *dims) if batched else tuple(dims)
    pairs = zip(tensor.shape, full, strict=False)
    if len(full) != len(tensor.shape) or any(-1 not in pair and pair[0] != pair[1] for pair in pairs):
        raise stand_in.other_dims(name, tensor.name, tensor.shape, full, batched=batched)


def _check_ranges(tensor, dims, profiles, name, batched):
    full = (-1, *dims) if batched else tuple(dims)
    for profile in profiles.values():
        if problem := engine_session.misfit(full, profile[tensor.name]):
            raise RefusedError(
                f"model configuration specified invalid shape for input '{tensor.name}' for model {name}. Error "
                f"details: {problem}"
            )


def _check_control(inputs, control, data_type, config, instance):
    """Refuse an engine whose control input is not one number per sequence."""
    name, batched = config["name"], int(config["max_batch_size"]) > 0
    if control not in inputs:
        raise RefusedError(f"input '{control}' not found for {instance}")
    tensor = inputs[control]
    _check_type(tensor, data_type, "input", instance)
    if -1 not in tensor.shape:
        _check_dims(tensor, (1,), name, batched)
        return
    first, problem = -1 if batched else 1, ""
    if tensor.shape[0] != first:
        problem = f"expects the first dimension to be {first} but the model specified {tensor.shape[0]}"
    elif any(size != 1 for size in tensor.shape[1:]):
        problem = (
            "expects all dimensions (conditionally first) to be 1 but the model specified shape "
            f"{shape_text(tensor.shape)}"
        )
    if problem:
        raise RefusedError(
            f"unexpected shape {shape_text(tensor.shape)} for control input '{control}' for model {name}: {problem}"
        )
