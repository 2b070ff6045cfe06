"""The stand-in backends in this process: what they refuse, in the C++ backends' words, and how they batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper

from pipeline.base import model_config
from tests.models import make_models as make
from tests.unit.servers.triton import stub
from tests.unit.servers.triton.stub import Tensor, TritonError

X3 = make.tensor_text("x", "float32", [3])
Y3 = make.tensor_text("y", "float32", [3])
ONNX, TORCH = "onnxruntime_onnx", "pytorch_libtorch"


@pytest.fixture(scope="module")
def backends(backend_folder: Path):
    """The two stand-ins' model.py."""
    return {name: stub.load(backend_folder / name) for name in ("onnxruntime", "pytorch")}


def _onnx(inputs=(X3,), outputs=(Y3,), **options) -> str:
    return make.config_text(ONNX, inputs=inputs, outputs=outputs, **options)


def _torch(inputs=(X3,), outputs=(Y3,), **options) -> str:
    return make.config_text(TORCH, inputs=inputs, outputs=outputs, **options)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _request(**inputs: np.ndarray) -> SimpleNamespace:
    tensors = [Tensor(name, array) for name, array in inputs.items()]
    return SimpleNamespace(inputs=lambda: tensors)


def _open(backends, root: Path, name: str, config: str, model, **options):
    """Write a model and initialize its stand-in as the stub would."""
    is_torch = TORCH in config
    options.setdefault("file", "model.pt" if is_torch else "model.onnx")
    make.add_model(root, name, config, model, **options)
    message = model_config.parse_text(config, name)
    message.name = name
    fields = {"max_batch_size": 0, **model_config.to_dict(message)}
    instance = backends["pytorch" if is_torch else "onnxruntime"].TritonPythonModel()
    instance.initialize(
        {
            "model_config": json.dumps(fields),
            "model_repository": str(root / name),
            "model_version": "1",
            "model_name": name,
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    return instance


def _optional_onnx():
    """y = x * factor, where factor has a default that a request may override."""
    return make.onnx_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        {"x": ("float32", (3,)), "factor": ("float32", (1,))},
        {"y": ("float32", (3,))},
        {"factor": np.array([2.0], np.float32)},
    )


def _scalar_onnx():
    """y = 2 * x for one number without dimensions."""
    return make.scale_onnx(shape=())


def _sequence_onnx():
    """An output that is a sequence of tensors, which the server has no type for."""
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], "tiny", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", make.OPSET)])
    model.ir_version = make.IR_VERSION
    return model


BAD_ONNX = {
    "too_many_inputs": (
        _onnx([X3, make.tensor_text("z", "float32", [3])]), make.scale_onnx(),
        "unable to load model 'too_many_inputs', configuration expects 2 inputs, model provides 1",
    ),
    "input_name": (
        _onnx([make.tensor_text("z", "float32", [3])]), make.scale_onnx(),
        "unexpected inference input 'z', allowed inputs are: x",
    ),
    "output_name": (
        _onnx(outputs=[make.tensor_text("z", "float32", [1])]), make.scale_onnx(),
        "unexpected inference output 'z', allowed outputs are: y",
    ),
    "input_dtype": (
        _onnx([make.tensor_text("x", "int64", [3])]), make.scale_onnx(),
        "unable to load model 'input_dtype', configuration expects datatype TYPE_INT64 for input 'x', "
        "model provides TYPE_FP32",
    ),
    "output_dtype": (
        _onnx(outputs=[make.tensor_text("y", "string", [3])]), make.scale_onnx(),
        "unable to load model 'output_dtype', configuration expects datatype TYPE_STRING for output 'y', "
        "model provides TYPE_FP32",
    ),
    "bfloat16": (
        _onnx([make.tensor_text("x", "TYPE_BF16", [3])]), make.scale_onnx(),
        "unsupported datatype TYPE_BF16 for input 'x' for model 'bfloat16'",
    ),
    "input_rank": (
        _onnx([make.tensor_text("x", "float32", [3, 1])]), make.scale_onnx(),
        "model 'input_rank', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
        "specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
        "tensor shape, making complete shape [-1,3,1])",
    ),
    "output_dims": (
        _onnx(outputs=[make.tensor_text("y", "float32", [-1])]), make.scale_onnx(),
        "model 'output_dims', tensor 'y': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
        "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
        "tensor shape, making complete shape [-1,-1])",
    ),
    "fixed_batch": (
        _onnx(), make.scale_onnx(shape=(1, 3)),
        "model 'fixed_batch', tensor 'x': for the model to support batching the shape should have at least 1 "
        "dimension and the first dimension must be -1; but shape expected by the model is [1,3]",
    ),
    "unbatched_rank": (
        _onnx(max_batch_size=0), make.scale_onnx(),
        "model 'unbatched_rank', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model "
        "configuration specifies 1 dimensions (shape [3])",
    ),
    "scalar_dims": (
        _onnx(max_batch_size=0), _scalar_onnx(),
        "unable to load model 'scalar_dims', scalar tensor 'x', should only provide 1 in the model configuration "
        "when the model doesn't support batching. Model configuration provided: [3].",
    ),
    "missing_file": (_onnx(), None, "/missing_file/1/model.onnx' for model instance 'missing_file'"),
    "missing_named": (
        _onnx(extra='default_model_filename: "other.onnx"'), make.scale_onnx(),
        "/missing_named/1/other.onnx' for model instance 'missing_named'",
    ),
    "corrupt": (_onnx(), b"not a model", "onnx runtime error 7: Load model from "),
    "optional_batched": (
        _onnx([make.tensor_text("factor", "float32", [1], "optional: true"), X3]), _optional_onnx(),
        "unable to load model 'optional_batched', optional input 'factor' is not supported for models that support "
        "batching",
    ),
    "execution_mode": (
        _onnx(extra=_parameter("execution_mode", "2")), make.scale_onnx(),
        "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got 2 .",
    ),
    "threads": (
        _onnx(extra=_parameter("intra_op_thread_count", "many")), make.scale_onnx(),
        "failed to convert 'many' to integral number",
    ),
    "arena": (
        _onnx(extra=_parameter("enable_mem_arena", "perhaps")), make.scale_onnx(),
        "failed to convert 'perhaps' to boolean",
    ),
    "accelerator": (
        _onnx(extra='optimization { execution_accelerators { cpu_execution_accelerator { name: "magic" } } }'),
        make.scale_onnx(),
        "unknown Execution Accelerator 'magic' is requested",
    ),
    "sequence": (
        _onnx(), _sequence_onnx(),
        "Unsupported ONNX Type 'ONNX_TYPE_SEQUENCE' for I/O 'y', expected 'ONNX_TYPE_TENSOR'.",
    ),
    "ragged": (
        _onnx([make.tensor_text("x", "float32", [3], "allow_ragged_batch: true")]), make.scale_onnx(),
        "allow_ragged_batch is not supported by this stand-in backend; use the container",
    ),
}  # fmt: skip

BAD_TORCH = {
    "pt_inputs": (
        _torch(), make.Affine(),
        "unable to load model 'pt_inputs', configuration expects 1 inputs, model provides 2",
    ),
    "pt_unsigned": (
        _torch([make.tensor_text("x", "TYPE_UINT32", [3])]), make.Scale(),
        "unsupported datatype TYPE_UINT32 for input 'x' for model 'pt_unsigned'",
    ),
    "pt_number": (
        _torch([X3, make.tensor_text("factor", "float32", [1])]), make.TakesNumber(),
        "An input of type 'float' was detected in the model. Only a single input of type Dict(str, Tensor) or "
        "input(s) of type Tensor are supported.",
    ),
    "pt_indices": (
        _torch([make.tensor_text("x__0", "float32", [3]), make.tensor_text("y__2", "float32", [3])]),
        make.Affine(),
        "the indices of x__0, y__2 must be 0 to 1, each once",
    ),
    "pt_string": (
        _torch([make.tensor_text("x", "string", [1])]), make.Scale(),
        "Triton only supports 1 dimensional List of String as input for 'x' for model 'pt_string'",
    ),
    "pt_optional": (
        _torch([make.tensor_text("x", "float32", [3], "optional: true")]), make.Scale(),
        "'optional' is set to true for input 'x' while the backend model doesn't support optional input",
    ),
    "pt_corrupt": (_torch(), b"not a model", "failed to load model 'pt_corrupt': "),
    "pt_missing": (_torch(), None, "/pt_missing/1/model.pt' for model instance 'pt_missing'"),
    "pt_parameter": (
        _torch(extra=_parameter("INFERENCE_MODE", "2")), make.Scale(), "failed to convert '2' to boolean",
    ),
}  # fmt: skip
BAD = BAD_ONNX | BAD_TORCH


def _refusal(backends, root: Path, name: str, config: str, model) -> str:
    with pytest.raises(Exception) as caught:  # its class lives in a module loaded by path
        _open(backends, root, name, config, model)
    assert type(caught.value).__name__ == "RefusedError"
    return str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_bad_model_is_refused(backends, tmp_path, name):
    config, model, message = BAD[name]
    assert message in _refusal(backends, tmp_path, name, config, model)


def test_parameters_reach_the_session(backends, tmp_path):
    counts = [_parameter("intra_op_thread_count", "1"), _parameter("inter_op_thread_count", "3threads")]
    others = [_parameter("execution_mode", "1"), _parameter("enable_mem_arena", "OFF")]
    others += [_parameter("enable_mem_pattern", "0"), "optimization { graph { level: -1 } }"]
    others += [_parameter("memory.enable_memory_arena_shrinkage", "cpu:0")]
    model = _open(backends, tmp_path, "tuned", _onnx(extra="\n".join(counts + others)), make.scale_onnx())
    options = model._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 3)
    assert (options.execution_mode.name, options.graph_optimization_level.name) == ("ORT_PARALLEL", "ORT_ENABLE_BASIC")
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert model._run_options is not None


def test_parameters_of_the_tensorrt_accelerator_reach_its_provider(backends):
    options = backends["onnxruntime"]._tensorrt_options
    given = {"precision_mode": "FP16", "max_workspace_size_bytes": "1024", "trt_layer_norm_fp32_fallback": "1"}
    assert options(given) == {
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "1024",
        "trt_layer_norm_fp32_fallback": "1",
    }
    for wrong in ({"precision_mode": "BF16"}, {"trt_fp16_enable": "1"}):
        with pytest.raises(backends["onnxruntime"].RefusedError):
            options(wrong)


def test_requests_become_one_run_and_each_gets_its_rows(backends, tmp_path):
    model = _open(backends, tmp_path, "scale", _onnx(), make.scale_onnx())
    runs = []
    run = model._batcher._run
    model._batcher._run = lambda inputs: runs.append(inputs["x"].shape) or run(inputs)
    arrays = [np.full((rows, 3), rows, np.float32) for rows in (1, 4, 2)]
    responses = model.execute([_request(x=array) for array in arrays])
    assert runs == [(7, 3)]
    for array, response in zip(arrays, responses, strict=True):
        assert_array_equal(response.outputs["y"], 2 * array)


def test_a_single_request_is_not_copied(backends, tmp_path):
    model = _open(backends, tmp_path, "scale", _onnx(), make.scale_onnx())
    array = np.ones((2, 3), np.float32)
    seen = []
    run = model._batcher._run
    model._batcher._run = lambda inputs: seen.append(inputs["x"]) or run(inputs)
    model.execute([_request(x=array)])
    assert seen[0] is array


def test_a_failed_run_fails_every_request_of_it(backends, tmp_path):
    config = _onnx([make.tensor_text("i", "int64", [1])], [make.tensor_text("y", "float32", [2])])
    model = _open(backends, tmp_path, "gather", config, make.gather_onnx())
    good, bad = _request(i=np.array([[1]])), _request(i=np.array([[9]]))
    responses = model.execute([good, bad])
    assert len(responses) == 2
    for response in responses:
        assert response.error.code == TritonError.INTERNAL
        assert response.error.message.startswith("onnx runtime error 2: Non-zero status code")
    assert_array_equal(model.execute([good])[0].outputs["y"], [[2.0, 3.0]])


def test_more_rows_than_configured_are_refused(backends, tmp_path):
    model = _open(backends, tmp_path, "scale", _onnx(max_batch_size=4), make.scale_onnx())
    five = [_request(x=np.ones((5, 3), np.float32))]
    assert model.execute(five)[0].error.message == "batch size 5 for 'scale', max allowed is 4"
    two = [_request(x=np.ones((3, 3), np.float32)), _request(x=np.ones((2, 3), np.float32))]
    assert [item.error.message for item in model.execute(two)] == ["batch size 5 for 'scale', max allowed is 4"] * 2


def test_unlike_requests_of_one_batch_are_an_error(backends, tmp_path):
    model = _open(backends, tmp_path, "scale", _onnx(), make.scale_onnx())
    responses = model.execute([_request(x=np.ones((1, 3), np.float32)), _request(x=np.ones((1, 4), np.float32))])
    assert all("differ in inputs or shapes" in item.error.message for item in responses)


EXECUTION = {
    "negative": (_torch(), make.Failing(), -1.0, "PyTorch execute failure: "),
    "dtype": (
        _torch(), make.Failing(), 1.0,
        "configuration expects datatype TYPE_FP32 for output 'y', model provides TYPE_INT64",
    ),
    "dict": (
        _torch(), make.ReturnsDict(), 1.0,
        "output must be of type Tensor, List[str] or Tuple containing one of these two types",
    ),
    "scalar": (_torch(), make.ReturnsScalar(), 1.0, "output 'y' is a scalar which is not supported."),
    "short": (
        _torch(outputs=[Y3, make.tensor_text("z", "float32", [3])]), make.Scale(), 1.0,
        "The output z in the model configuration refers to an output index which doesn't exist. "
        "This model has 1 outputs",
    ),
    "shape": (
        _torch(outputs=[make.tensor_text("y", "float32", [4])]), make.Scale(), 1.0,
        "output 'y' has shape [2,3], the model configuration specifies [-1,4]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXECUTION)
def test_torchscript_refuses_a_run_and_lives_on(backends, tmp_path, name):
    config, module, value, message = EXECUTION[name]
    model = _open(backends, tmp_path, name, config, module)
    request = _request(x=np.full((2, 3), value, np.float32))
    for _ in range(2):
        assert message in model.execute([request])[0].error.message


def test_torchscript_inputs_by_argument_index_and_order(backends, tmp_path):
    x, shift = np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    tensor = make.tensor_text
    two = [tensor("sum", "float32", [3]), tensor("difference", "float32", [3])]
    indexed = [tensor("OUTPUT__1", "float32", [3]), tensor("OUTPUT__0", "float32", [3])]
    cases = {
        "argument": ({"shift": shift, "x": x}, two, {"sum": 3.5, "difference": 0.5}),
        "index": ({"INPUT__1": shift, "INPUT__0": x}, indexed, {"OUTPUT__0": 3.5, "OUTPUT__1": 0.5}),
        "order": ({"first": x, "second": shift}, two, {"sum": 3.5, "difference": 0.5}),
        "mixed": ({"x": x, "other__1": shift}, two, {"sum": 3.5, "difference": 0.5}),
    }
    for name, (inputs, outputs, expected) in cases.items():
        config = _torch([tensor(key, "float32", [3]) for key in inputs], outputs)
        model = _open(backends, tmp_path, name, config, make.Affine())
        answer = model.execute([_request(**inputs)])[0].outputs
        assert {key: float(array[1, 2]) for key, array in answer.items()} == expected, name


def test_torchscript_parameters(backends, tmp_path):
    import torch

    before = torch.get_num_threads()
    keys = {"INFERENCE_MODE": "false", "DISABLE_OPTIMIZED_EXECUTION": "true", "INTRA_OP_THREAD_COUNT": "1"}
    extra = "\n".join(_parameter(key, value) for key, value in keys.items())
    try:
        model = _open(backends, tmp_path, "tuned", _torch(extra=extra), make.Scale())
        assert torch.get_num_threads() == 1
        assert torch._C._get_graph_executor_optimize() is False
        assert model._inference_mode is False
        answer = model.execute([_request(x=np.ones((1, 3), np.float32))])[0].outputs["y"]
        assert_array_equal(answer, np.full((1, 3), 2.0, np.float32))
    finally:
        torch.set_num_threads(before)
        torch._C._set_graph_executor_optimize(True)
