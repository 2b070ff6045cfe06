"""Stands in for Triton's C++ onnxruntime backend where that one is not installed.

Loads, refuses and answers as triton-inference-server/onnxruntime_backend at r24.10 does (src/onnxruntime.cc,
onnxruntime_utils.cc), with the same wording, so that a model served here is one the real backend would serve.
Each instance is a process of its own.
"""

import json
import re

import numpy as np
import stand_in

facts = stand_in.facts
RefusedError = stand_in.RefusedError

# ONNX Runtime's type names to the server's; a type that is not here is one Triton cannot carry
_NAMES = {"float32": "float", "float64": "double", "object": "string"}  # the others are numpy's
_SERVER_TYPES = {
    f"tensor({_NAMES.get(kind, kind)})": name.removeprefix("TYPE_").replace("STRING", "BYTES")
    for name, kind in facts.NUMPY_TYPES.items()
}
_ONNX_TYPES = {"seq": "ONNX_TYPE_SEQUENCE", "map": "ONNX_TYPE_MAP", "sparse_tensor": "ONNX_TYPE_SPARSETENSOR"}
_BACKEND = facts.BACKENDS["onnxruntime"]


class TritonPythonModel(stand_in.Model):
    """One instance of one ONNX model."""

    def initialize(self, args):
        """Open the model and check it against its configuration; an exception here fails the load."""
        import onnxruntime as ort  # slow to import, so not while the stub only looks at this file

        config = json.loads(args["model_config"])
        stand_in.refuse_unsupported(config)
        parameters = stand_in.Parameters(config)
        options = _session_options(ort, config, parameters)
        path = stand_in.model_file(args, config, _BACKEND.file_name)
        if path.is_dir():
            path = path / _BACKEND.file_name
        stand_in.require_file(path, config["name"])
        providers = _providers(ort, config, args)
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise RefusedError(_runtime_error(error)) from error
        self._run_options = _run_options(ort, parameters)
        self._scalar_inputs = _check_inputs(self._session, config)
        self._scalar_outputs = _check_outputs(self._session, config)
        self._text_inputs = {item["name"] for item in config["input"] if item["data_type"] == "TYPE_STRING"}
        self._output_names = [item["name"] for item in config["output"]]
        self._serve(config)

    def _run(self, inputs):
        for name in self._scalar_inputs.intersection(inputs):
            inputs[name] = inputs[name].reshape(())
        for name in self._text_inputs.intersection(inputs):
            inputs[name] = np.array(stand_in.texts(inputs[name]), np.object_).reshape(inputs[name].shape)
        try:
            arrays = self._session.run(self._output_names, inputs, self._run_options)
        except Exception as error:
            raise RefusedError(_runtime_error(error)) from error
        for index, shape in self._scalar_outputs:
            arrays[index] = np.asarray(arrays[index]).reshape(shape)
        return arrays


def _runtime_error(error):
    """``onnx runtime error 2: text``: as the C++ backend words a status that Python words differently."""
    status = re.match(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", str(error), re.DOTALL)
    return f"onnx runtime error {status[1]}: {status[2]}" if status else f"onnx runtime error 1: {error}"


def _session_options(ort, config, parameters):
    options = ort.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, facts.GRAPH_LEVELS.get(level, facts.GRAPH_LEVELS[0])
    )
    mode = parameters.integer("execution_mode", 0)
    if mode not in facts.EXECUTION_MODES:
        raise RefusedError(
            f"Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got {mode} ."
        )
    options.execution_mode = getattr(ort.ExecutionMode, facts.EXECUTION_MODES[mode])
    for key, field in zip(_BACKEND.threads, ("intra_op_num_threads", "inter_op_num_threads"), strict=True):
        count = parameters.integer(key, 0)
        if count > 0:
            setattr(options, field, count)
    options.enable_cpu_mem_arena = parameters.boolean("enable_mem_arena", options.enable_cpu_mem_arena)
    options.enable_mem_pattern = parameters.boolean("enable_mem_pattern", options.enable_mem_pattern)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            raise RefusedError(_runtime_error(error)) from error
    return options


def _run_options(ort, parameters):
    shrinkage = parameters.text("memory.enable_memory_arena_shrinkage")
    if shrinkage is None:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)
    return options


def _providers(ort, config, args):
    """ONNX Runtime's providers in order of preference: those asked for, or a refusal."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    chosen = []
    if args["model_instance_kind"] == "GPU":
        cuda = {"device_id": args["model_instance_device_id"]}
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            parameters = accelerator.get("parameters", {})
            if accelerator["name"] == "tensorrt":
                options = {**_tensorrt_options(parameters), "device_id": args["model_instance_device_id"]}
                chosen.append(("TensorrtExecutionProvider", options))
            elif accelerator["name"] == "cuda":
                cuda.update(parameters)
            else:
                raise RefusedError(f"unknown Execution Accelerator '{accelerator['name']}' is requested")
        chosen.append(("CUDAExecutionProvider", cuda))
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        if accelerator["name"] != "openvino":
            raise RefusedError(f"unknown Execution Accelerator '{accelerator['name']}' is requested")
        chosen.append(("OpenVINOExecutionProvider", {"device_type": "CPU"}))
    available = ort.get_available_providers()
    for name, _ in chosen:
        if name not in available:
            raise RefusedError(f"{name} is needed, but the installed onnxruntime has {', '.join(available)}")
    return [*chosen, "CPUExecutionProvider"]


def _tensorrt_options(parameters):
    options = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in facts.PRECISION_MODES:
                raise RefusedError(f"unsupported precision mode '{value}' is requested")
            if option := facts.PRECISION_MODES[value]:
                options[option] = "1"
        elif key in facts.TENSORRT_OPTIONS:
            options[facts.TENSORRT_OPTIONS[key]] = value
        else:
            raise RefusedError(f"unknown parameter '{key}' is provided for TensorRT Execution Accelerator")
    return options


def _tensors(nodes):
    """Data type and shape of each graph input or output, -1 for a dynamic dimension, by name."""
    infos = {}
    for node in nodes:
        kind = node.type.partition("(")[0]
        if kind != "tensor":
            found = _ONNX_TYPES.get(kind, "ONNX_TYPE_UNKNOWN")
            raise RefusedError(f"Unsupported ONNX Type '{found}' for I/O '{node.name}', expected 'ONNX_TYPE_TENSOR'.")
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        infos[node.name] = (_SERVER_TYPES.get(node.type, "<invalid>"), shape)
    return infos


def _check_inputs(session, config):
    """Refuse inputs that the graph does not have as configured; return the names of scalar inputs."""
    name, limit = config["name"], int(config["max_batch_size"])
    infos = _tensors(session.get_inputs())
    controls = stand_in.sequence_controls(config)
    for control, data_type in controls:
        _check_control(infos, control, data_type, config)
    expected = sum(not item.get("optional", False) for item in config["input"]) + len(controls)
    stand_in.check_count(name, expected, len(infos))
    infos.update(_tensors(session.get_overridable_initializers()))
    for item in config["input"]:
        if item.get("optional", False) and limit != 0:
            raise RefusedError(
                f"unable to load model '{name}', optional input '{item['name']}' is not supported for models "
                "that support batching"
            )
        _check_tensor(item, infos, "input", config)
    return {item["name"] for item in config["input"] if not infos[item["name"]][1]}


def _check_outputs(session, config):
    """Refuse outputs that the graph has not as configured; return (position, dims) of scalar outputs."""
    infos = _tensors(session.get_outputs())
    for item in config["output"]:
        _check_tensor(item, infos, "output", config)
    positions = enumerate(config["output"])
    return [(index, stand_in.dims_of(item)) for index, item in positions if not infos[item["name"]][1]]


def _check_control(infos, control, data_type, config):
    stand_in.check_control(control, infos)
    found, shape = infos[control]
    unbatched = shape[1:] if int(config["max_batch_size"]) > 0 else shape
    start = f"unable to load model '{config['name']}', sequence control '{control}'"
    if unbatched != [1]:
        raise RefusedError(f"{start} in model has dims {stand_in.shape_text(unbatched)} but dims [1] is expected")
    if data_type != f"TYPE_{found}".replace("BYTES", "STRING"):
        raise RefusedError(
            f"{start}, the model expects data-type {found} but the model configuration specifies data-type {data_type}"
        )


def _check_tensor(item, infos, role, config):
    """The C++ backend's checks of one configured input or output: its name, its data type, its dims."""
    name, tensor, data_type = config["name"], item["name"], item["data_type"]
    stand_in.check_names([item], infos, role)
    stand_in.check_supported(item, _BACKEND, f"{role} '{tensor}' for model '{name}'")
    found, shape = infos[tensor]
    if data_type.removeprefix("TYPE_").replace("STRING", "BYTES") != found:
        raise RefusedError(
            f"unable to load model '{name}', configuration expects datatype {data_type} for {role} "
            f"'{tensor}', model provides TYPE_{found}"
        )
    dims = list(stand_in.dims_of(item))
    if shape:
        stand_in.check_dims(config, item, shape, exact=role == "output")
    elif any(size != 1 for size in dims):
        raise RefusedError(
            f"unable to load model '{name}', scalar tensor '{tensor}', should only provide 1 in the model "
            f"configuration when the model doesn't support batching. Model configuration provided: "
            f"{stand_in.shape_text(dims)}."
        )
