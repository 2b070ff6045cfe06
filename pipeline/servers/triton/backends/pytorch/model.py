"""Stands in for Triton's C++ pytorch backend where that one is not installed.

Loads, refuses and answers as triton-inference-server/pytorch_backend at r24.10 does (src/libtorch.cc), with
the same wording, so that a TorchScript model served here is one the real backend would serve. Each instance is
a process of its own, so parameters that are global to the C++ server's process are the instance's own here, and
ENABLE_WEIGHT_SHARING has nothing to share.
"""

import io
import json
import warnings

import numpy as np
import stand_in

RefusedError = stand_in.RefusedError

_BACKEND = stand_in.facts.BACKENDS["pytorch"]


class TritonPythonModel(stand_in.Model):
    """One instance of one TorchScript model."""

    def initialize(self, args):
        """Open the model and check it against its configuration; an exception here fails the load."""
        import torch  # slow to import, so not while the stub only looks at this file

        config = json.loads(args["model_config"])
        for item in config["input"]:
            if item.get("optional", False):
                raise RefusedError(
                    f"'optional' is set to true for input '{item['name']}' while the backend model doesn't "
                    "support optional input"
                )
        stand_in.refuse_unsupported(config)
        self._torch, self._name = torch, config["name"]
        self._inference_mode, self._clean_cache = _apply_parameters(torch, stand_in.Parameters(config))
        self._device = _device(torch, args)
        path = stand_in.model_file(args, config, _BACKEND.file_name)
        stand_in.require_file(path, self._name)
        self._module = self._load(path, args)
        batched = int(config["max_batch_size"]) > 0
        self._takes_dict, self._positions = _check_inputs(self._module.forward.schema, config, batched)
        self._text_inputs = {item["name"] for item in config["input"] if item["data_type"] == "TYPE_STRING"}
        for item in config["output"]:
            _check_tensor(item, "output", config, batched)
        self._outputs = list(zip((item["name"] for item in config["output"]), _output_positions(config), strict=True))
        self._serve(config)

    def _load(self, path, args):
        torch = self._torch
        device = None if args["model_instance_kind"] == "MODEL" else self._device
        try:
            with warnings.catch_warnings(), torch.inference_mode(self._inference_mode):
                # torch 2.13 calls TorchScript deprecated at each load; the log says nothing else by it
                warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
                return torch.jit.load(io.BytesIO(path.read_bytes()), map_location=device)
        except (RuntimeError, ValueError, OSError) as error:
            raise RefusedError(f"failed to load model '{self._name}': {error}") from error

    def _run(self, inputs):
        torch = self._torch
        try:
            with torch.inference_mode(self._inference_mode), torch.no_grad():
                results = self._forward({name: self._value(name, array) for name, array in inputs.items()})
        except Exception as error:  # whatever TorchScript raises, as the C++ backend catches it
            raise RefusedError(f"PyTorch execute failure: {error}") from error
        arrays = []
        for name, position in self._outputs:
            if position >= len(results):
                raise RefusedError(
                    f"The output {name} in the model configuration refers to an output index which doesn't "
                    f"exist. This model has {len(results)} outputs"
                )
            arrays.append(self._array(name, results[position]))
        if self._clean_cache:
            torch.cuda.empty_cache()
        return arrays

    def _value(self, name, array):
        if name in self._text_inputs:
            return stand_in.texts(array)
        tensor = self._torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)

    def _forward(self, values):
        """Call the model; the result's elements, tensors or lists of text.

        Raises:
            ValueError: the result is something the C++ backend does not take.
        """
        if self._takes_dict:
            result = self._module.forward(values)
        else:
            arguments = [None] * len(self._positions)
            for name, value in values.items():
                arguments[self._positions[name]] = value
            result = self._module.forward(*arguments)
        if isinstance(result, tuple):
            for index, item in enumerate(result):
                self._require_carriable(item, f"output at index {index}")
            return result
        if not isinstance(result, (list, self._torch.Tensor)):
            raise ValueError(
                "output must be of type Tensor, List[str] or Tuple containing one of these two types. It "
                "should not be a List / Dictionary of Tensors or a Scalar"
            )
        self._require_carriable(result, "output")
        return (result,)

    def _require_carriable(self, item, what):
        if isinstance(item, list):
            if strange := [element for element in item if not isinstance(element, str)]:
                raise ValueError(
                    f"{what} must be of type Tensor or List[str], received List[{type(strange[0]).__name__}]"
                )
        elif not isinstance(item, self._torch.Tensor):
            raise ValueError(f"Expected Tensor but got {type(item).__name__.capitalize()}")

    def _array(self, name, value):
        if isinstance(value, list):
            return np.array([item.encode() for item in value], dtype=np.object_)
        if value.dim() == 0:
            raise RefusedError(f"output '{name}' is a scalar which is not supported.")
        if value.dtype == self._torch.bfloat16:  # numpy has no such type
            raise RefusedError(
                f"configuration expects another datatype for output '{name}', model provides TYPE_<invalid>"
            )
        return value.detach().cpu().contiguous().numpy()


def _apply_parameters(torch, parameters):
    """Set what is global to the process; return whether to use inference mode, and to empty the GPU cache."""
    torch._C._set_graph_executor_optimize(not parameters.boolean("DISABLE_OPTIMIZED_EXECUTION", False))
    clean_cache = parameters.boolean("ENABLE_CACHE_CLEANING", False)
    inference_mode = parameters.boolean("INFERENCE_MODE", True)
    torch.backends.cudnn.enabled = not parameters.boolean("DISABLE_CUDNN", False)
    parameters.boolean("ENABLE_WEIGHT_SHARING", False)
    for key, switch in (
        ("ENABLE_TENSOR_FUSER", torch._C._jit_set_texpr_fuser_enabled),
        ("ENABLE_JIT_PROFILING", torch._C._jit_set_profiling_mode),
        ("ENABLE_JIT_EXECUTOR", torch._C._jit_set_profiling_executor),
    ):
        wanted = parameters.boolean(key, None)
        if wanted is not None:
            switch(wanted)
    for key, limit in zip(_BACKEND.threads, (torch.set_num_threads, torch.set_num_interop_threads), strict=True):
        count = parameters.integer(key, -1)
        if count > 0:
            limit(count)
    return inference_mode, clean_cache and torch.cuda.is_available()


def _device(torch, args):
    if args["model_instance_kind"] != "GPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RefusedError("a GPU instance is needed, but the installed torch finds no CUDA device")
    return torch.device("cuda", int(args["model_instance_device_id"]))


def _named_index(name):
    """The index of ``<name>__<index>``, or None for a name of another form."""
    _, separator, index = name.partition("__")
    if not separator or (index and not index.isdigit()):
        return None
    return int(index or 0)


def _check_inputs(schema, config, batched):
    """Refuse inputs that forward cannot take as configured.

    Returns:
        Whether forward takes one dict of tensors, and the argument position of each input by name.
    """
    arguments = [item for item in schema.arguments if item.type.kind() != "ClassType"]
    kinds = [item.type.kind() for item in arguments]
    controls = [control for control, _ in stand_in.sequence_controls(config)]
    names = [item["name"] for item in config["input"]] + controls
    takes_dict = kinds == ["DictType"]
    if not takes_dict:
        _check_arguments(arguments, kinds, len(names), config["name"])
    if not config["input"]:
        raise RefusedError("model configuration must contain at least one input, none were specified.")
    for item in config["input"]:
        _check_tensor(item, "input", config, batched)
    if takes_dict:
        return True, {name: position for position, name in enumerate(names)}
    return False, _input_positions(names, controls, [item.name for item in arguments])


def _check_arguments(arguments, kinds, count, name):
    if "DictType" in kinds[1:]:
        raise RefusedError(
            "Multiple inputs of kind DictType were detected. Only a single input of type Dict(str, Tensor) "
            "is supported."
        )
    for argument, kind in zip(arguments, kinds, strict=True):
        if kind not in ("TensorType", "ListType"):
            raise RefusedError(
                f"An input of type '{argument.type}' was detected in the model. Only a single input of type "
                "Dict(str, Tensor) or input(s) of type Tensor are supported."
            )
    stand_in.check_count(name, count, len(arguments))


def _input_positions(names, controls, arguments):
    for control in controls:
        if _named_index(control) is None:
            raise RefusedError(f"input '{control}' does not follow <name>__<index> naming convention.")
    if all(name in arguments for name in names):
        return {name: arguments.index(name) for name in names}
    positions = {name: _named_index(name) for name in names}
    if None in positions.values():
        return {name: position for position, name in enumerate(names)}
    if sorted(positions.values()) != list(range(len(arguments))):
        # the C++ backend does not look, and calls forward with arguments missing
        raise RefusedError(f"the indices of {', '.join(names)} must be 0 to {len(arguments) - 1}, each once")
    return positions


def _output_positions(config):
    names = [item["name"] for item in config["output"]]
    if not names:
        raise RefusedError("model configuration must contain at least one output, none were specified.")
    positions = [_named_index(name) for name in names]
    return list(range(len(names))) if None in positions else positions


def _check_tensor(item, role, config, batched):
    stand_in.check_supported(item, _BACKEND, f"{role} '{item['name']}' for model '{config['name']}'")
    if item["data_type"] == "TYPE_STRING" and len(stand_in.dims_of(item)) + batched > 1:
        raise RefusedError(
            f"Triton only supports 1 dimensional List of String as {role} for '{item['name']}' for model "
            f"'{config['name']}'"
        )
