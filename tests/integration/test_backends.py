"""The stand-in backends inside the real server: good models answer, bad ones are refused in the C++ backends' words."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc as grpcclient
from onnx import helper

from pipeline.servers.process import Served
from pipeline.servers.triton import embedded as triton
from tests.models import make_models as make

X3 = make.tensor_text("x", "float32", [3])
Y3 = make.tensor_text("y", "float32", [3])
ONNX, TORCH = "onnxruntime_onnx", "pytorch_libtorch"


def _onnx(inputs=(X3,), outputs=(Y3,), **options) -> str:
    return make.config_text(ONNX, inputs=inputs, outputs=outputs, **options)


def _torch(inputs=(X3,), outputs=(Y3,), **options) -> str:
    return make.config_text(TORCH, inputs=inputs, outputs=outputs, **options)


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


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


def _add_good_onnx(root: Path) -> None:
    queue = "dynamic_batching { max_queue_delay_microseconds: 20000 }"
    tensor = make.tensor_text
    ids = [tensor("ids", "int64", [-1]), tensor("mask", "int64", [-1])]
    sums = [tensor("total", "int64", [1]), tensor("share", "float32", [1])]
    make.add_model(root, "text", _onnx(ids, sums, max_batch_size=16, extra=queue), make.masked_sum_onnx())
    threads = [_parameter(key, "1") for key in ("intra_op_thread_count", "inter_op_thread_count", "execution_mode")]
    tuned = [*threads, _parameter("enable_mem_arena", "false"), _parameter("enable_mem_pattern", "Off")]
    graph = "optimization { graph { level: 2 } }"
    make.add_model(root, "tuned", _onnx(extra="\n".join([*tuned, graph])), make.scale_onnx())
    rows = _onnx([tensor("x", "float32", [-1, 4])], [tensor("total", "float32", [-1])], max_batch_size=0)
    make.add_model(root, "unbatched", rows, make.row_sum_onnx())
    make.add_model(root, "folder", _onnx(), make.scale_onnx(3.0), file="model.onnx/model.onnx")
    named = _onnx(extra='default_model_filename: "other.onnx"')
    make.add_model(root, "named", named, make.scale_onnx(4.0), file="other.onnx")
    strings = [tensor("a", "string", [1]), tensor("b", "string", [1])]
    make.add_model(root, "strings", _onnx(strings, [tensor("y", "string", [1])], extra=queue), make.join_strings_onnx())
    half = [tensor("x", "float16", [3]), tensor("y", "float16", [3])]
    make.add_model(root, "half", _onnx(half[:1], half[1:]), make.scale_onnx(dtype="float16"))
    factor = tensor("factor", "float32", [1], "optional: true")
    make.add_model(root, "optional", _onnx([X3, factor], max_batch_size=0), _optional_onnx())
    one = [tensor("x", "float32", [1]), tensor("y", "float32", [1])]
    make.add_model(root, "scalar", _onnx(one[:1], one[1:], max_batch_size=0), _scalar_onnx())
    flat = tensor("x", "float32", [3, 1], "reshape { shape: [3] }")
    make.add_model(root, "reshaped", _onnx([flat]), make.scale_onnx())
    index = _onnx([tensor("i", "int64", [1])], [tensor("y", "float32", [2])])
    make.add_model(root, "gather", index, make.gather_onnx())
    both = _onnx(extra="version_policy { specific { versions: [1, 2] } }")
    make.add_model(root, "versions", both, make.scale_onnx(10.0))
    version = root / "versions" / "2"
    version.mkdir()
    (version / "model.onnx").write_bytes(make.scale_onnx(20.0).SerializeToString())


def _add_good_torch(root: Path) -> None:
    tensor = make.tensor_text
    shift = tensor("shift", "float32", [3])
    parameters = [_parameter("INTRA_OP_THREAD_COUNT", "1"), _parameter("INTER_OP_THREAD_COUNT", "1")]
    parameters += [_parameter("DISABLE_OPTIMIZED_EXECUTION", "true"), _parameter("INFERENCE_MODE", "off")]
    parameters += [_parameter("ENABLE_JIT_EXECUTOR", "true"), _parameter("ENABLE_WEIGHT_SHARING", "true")]
    make.add_model(root, "pt_named", _torch([shift, X3], extra="\n".join(parameters)), make.Affine())
    numbered = [tensor("INPUT__1", "float32", [3]), tensor("INPUT__0", "float32", [3])]
    results = [tensor("OUTPUT__1", "float32", [3]), tensor("OUTPUT__0", "float32", [3])]
    make.add_model(root, "pt_numbered", _torch(numbered, results), make.Affine())
    make.add_model(root, "pt_dict", _torch([shift, X3]), make.DictSum())
    loop = _torch([X3, tensor("times", "int64", [1])], extra="dynamic_batching { }")
    make.add_model(root, "pt_loop", loop, make.Loop())
    make.add_model(root, "pt_failing", _torch(), make.Failing())


BAD = {
    "input_name": (
        _onnx([make.tensor_text("z", "float32", [3])]), make.scale_onnx(),
        "Internal: RefusedError: unexpected inference input 'z', allowed inputs are: x",
    ),
    "missing_file": (_onnx(), None, "/missing_file/1/model.onnx' for model instance 'missing_file'"),
    "corrupt": (_onnx(), b"not a model", "onnx runtime error 7: Load model from "),
    "gpu": (
        _onnx(extra="instance_group { kind: KIND_GPU }"), make.scale_onnx(),
        "has kind KIND_GPU but no GPUs are available",
    ),
    "pt_inputs": (
        _torch(), make.Affine(),
        "unable to load model 'pt_inputs', configuration expects 1 inputs, model provides 2",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("backends") / "repository"
    _add_good_onnx(root)
    _add_good_torch(root)
    for name, (config, model, _) in BAD.items():
        file = "model.pt" if name.startswith("pt_") else "model.onnx"
        make.add_model(root, name, config, model, file=file)
    return root


@pytest.fixture(scope="module")
def served(repository) -> Iterator[Served]:
    good = [name for name in triton.models_of(repository) if name not in BAD]
    log_path = repository.parent / "server.log"
    with triton.embedded(repository, good, log_path=log_path, start_timeout_s=120, exit_timeout_s=10) as served:
        yield served


@pytest.fixture(scope="module")
def client(served) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(served.server.grpc_url) as client:
        yield client


_TYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "object": "BYTES"}


def _infer(client, model: str, version: str = "", **inputs: np.ndarray) -> dict[str, np.ndarray]:
    tensors = []
    for name, array in inputs.items():
        tensors.append(grpcclient.InferInput(name, list(array.shape), _TYPES[str(array.dtype)]))
        tensors[-1].set_data_from_numpy(array)
    answer = client.infer(model, tensors, model_version=version)
    return {item.name: answer.as_numpy(item.name) for item in answer.get_response().outputs}


def _floats(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3.0


@pytest.mark.parametrize(("model", "factor"), [("tuned", 2.0), ("folder", 3.0), ("named", 4.0), ("reshaped", 2.0)])
def test_onnx_layouts_and_parameters(client, model, factor):
    x = _floats(5, 3)
    sent = x.reshape(5, 3, 1) if model == "reshaped" else x
    np.testing.assert_array_equal(_infer(client, model, x=sent)["y"], factor * x)


def test_onnx_answers_equal_to_the_session_in_this_process(client, repository):
    session = onnxruntime.InferenceSession(repository / "text" / "1" / "model.onnx")
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 1000, (7, 11)), rng.integers(0, 2, (7, 11))
    answer = _infer(client, "text", ids=ids, mask=mask)
    total, share = session.run(["total", "share"], {"ids": ids, "mask": mask})
    assert answer["total"].dtype == np.int64
    np.testing.assert_array_equal(answer["total"], total)
    np.testing.assert_array_equal(answer["share"], share)
    np.testing.assert_array_equal(total[:, 0], (ids * mask).sum(1))


def test_model_without_a_batch_dimension(client):
    x = _floats(6, 4)
    np.testing.assert_array_equal(_infer(client, "unbatched", x=x)["total"], x.sum(1))


def test_strings_half_scalar_and_optional(client):
    a = np.array([["né"], ["b"]], dtype=object)
    joined = _infer(client, "strings", a=a, b=np.array([["x"], [""]], dtype=object))["y"]
    assert [item.decode() for item in joined[:, 0]] == ["néx", "b"]
    half = np.ones((2, 3), np.float16)
    np.testing.assert_array_equal(_infer(client, "half", x=half)["y"], half * 2)
    np.testing.assert_array_equal(_infer(client, "scalar", x=np.array([4.0], np.float32))["y"], [8.0])
    np.testing.assert_array_equal(_infer(client, "optional", x=_floats(3))["y"], 2 * _floats(3))
    factor = np.array([5.0], np.float32)
    np.testing.assert_array_equal(_infer(client, "optional", x=_floats(3), factor=factor)["y"], 5 * _floats(3))


def test_each_version_answers_as_itself(client):
    for version, factor in (("1", 10.0), ("2", 20.0), ("", 20.0)):
        np.testing.assert_array_equal(_infer(client, "versions", version, x=_floats(1, 3))["y"], factor * _floats(1, 3))


def test_torchscript_naming_conventions(client):
    x, shift = _floats(2, 3), np.full((2, 3), 0.5, np.float32)
    total, difference = 3 * x + shift, x - shift
    np.testing.assert_array_equal(_infer(client, "pt_named", shift=shift, x=x)["y"], total)
    numbered = _infer(client, "pt_numbered", INPUT__1=shift, INPUT__0=x)
    np.testing.assert_array_equal(numbered["OUTPUT__0"], total)
    np.testing.assert_array_equal(numbered["OUTPUT__1"], difference)
    np.testing.assert_array_equal(_infer(client, "pt_dict", x=x, shift=shift)["y"], x + shift)


def test_torchscript_keeps_its_control_flow(client, repository):
    x = _floats(2, 3)
    for times in (0, 1, 5):
        counts = np.full((2, 1), times, np.int64)
        expected = make.Loop()(torch.from_numpy(x), torch.from_numpy(counts)).numpy()
        np.testing.assert_array_equal(_infer(client, "pt_loop", x=x, times=counts)["y"], expected)


def test_torchscript_failure_is_an_answer_and_the_model_lives_on(client):
    for value, message in ((-1.0, "PyTorch execute failure: "), (1.0, "model provides TYPE_INT64")):
        with pytest.raises(grpcclient.InferenceServerException, match=message):
            _infer(client, "pt_failing", x=np.full((2, 3), value, np.float32))


def test_onnx_failure_is_worded_as_the_cpp_backend_words_it(client):
    with pytest.raises(grpcclient.InferenceServerException, match=r"onnx runtime error 2: .*Gather"):
        _infer(client, "gather", i=np.array([[7]], np.int64))
    np.testing.assert_array_equal(_infer(client, "gather", i=np.array([[3]], np.int64))["y"], [[6.0, 7.0]])


def test_concurrent_requests_are_merged_and_each_gets_its_own_rows(client):
    rng = np.random.default_rng(1)
    requests = []
    for index in range(32):
        shape = (1 + index % 5, 4 if index % 8 else 9)
        requests.append((rng.integers(0, 1000, shape), rng.integers(0, 2, shape)))
    before = client.get_inference_statistics("text", as_json=True)["model_stats"][0]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda pair: _infer(client, "text", ids=pair[0], mask=pair[1]), requests))
    for (ids, mask), answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["total"], (ids * mask).sum(1, keepdims=True))
        np.testing.assert_allclose(answer["share"], mask.mean(1, keepdims=True), atol=1e-6)
    after = client.get_inference_statistics("text", as_json=True)["model_stats"][0]
    inferences = int(after["inference_count"]) - int(before["inference_count"])
    executions = int(after["execution_count"]) - int(before["execution_count"])
    assert inferences == sum(len(ids) for ids, _ in requests)
    assert executions < len(requests), "no two requests were merged"


@pytest.fixture(scope="module")
def refusals(served) -> dict[str, str]:
    """What the server says to loading each bad model."""

    def load(name: str) -> str:
        request = urllib.request.Request(f"{served.server.http_url}/v2/repository/models/{name}/load", data=b"")
        try:
            with urllib.request.urlopen(request, timeout=60):
                return "loaded"
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)["error"]

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(BAD, pool.map(load, BAD), strict=True))


@pytest.mark.parametrize("name", BAD)
def test_bad_model_is_refused(refusals, name):
    assert BAD[name][2] in refusals[name]


def test_server_serves_on_after_refusals(client, refusals, served):
    served.check_alive()
    np.testing.assert_array_equal(_infer(client, "tuned", x=_floats(1, 3))["y"], 2 * _floats(1, 3))
