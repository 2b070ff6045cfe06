"""The stand-in for the tensorrt backend, against a stand-in for TensorRT: what it refuses, and how it batches."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pipeline.base import model_config
from tests.models.make_models import tensor_text
from tests.unit.formats.tensorrt.fake_tensorrt import PLAN, Engine, Port, install
from tests.unit.servers.triton import stub as stubs
from tests.unit.servers.triton.stub import Tensor

X, Y = tensor_text("x", "float32", [-1]), tensor_text("y", "float32", [-1])
SPANS = (((1, 1), (4, 4), (8, 8)), ((1, 8), (8, 16), (8, 32)))
GROUP = "instance_group { name: 'm_0' count: 1 kind: KIND_GPU }"
BOTH = "instance_group { name: 'm_0' count: 1 kind: KIND_GPU profile: ['0', '1'] }"


def engine(**changes: Any) -> Engine:
    """y = 2 * x for lengths 1 to 8, and 8 to 32 in another profile; what is changed is changed in x."""
    x = Port("x", "FLOAT", (-1, -1), SPANS)._replace(**changes)
    return Engine([x], [Port("y", "FLOAT", (-1, -1))], lambda x: {"y": 2 * x})


class Stub:
    """Triton's Python stub, as far as a backend sees it."""

    def __init__(self, patch: pytest.MonkeyPatch, backends: Path, root: Path) -> None:
        self._patch, self._backends, self._root = patch, backends, root

    def open(
        self, config: str, made: Engine, *, backend: str = "tensorrt", kind: str = "GPU", files: Any = None
    ) -> Any:
        """Initialize an instance; ``files`` are those of the version, by name."""
        self.cuda = install(self._patch, made, backend)
        version = self._root / "m" / "1"
        version.mkdir(parents=True, exist_ok=True)
        for name, data in ({"model.plan": PLAN} if files is None else files).items():
            (version / name).write_bytes(data)
        instance = stubs.load(self._backends / backend).TritonPythonModel()
        fields = {"max_batch_size": 0, **model_config.to_dict(model_config.parse_text(config, "m"))}
        instance.initialize(
            {
                "model_config": json.dumps({**fields, "name": "m"}),
                "model_repository": str(self._root / "m"),
                "model_version": "1",
                "model_name": "m",
                "model_instance_name": "m_0_0",
                "model_instance_kind": kind,
                "model_instance_device_id": "1",
            }
        )
        return instance


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, backend_folder: Path, tmp_path: Path) -> Stub:
    return Stub(monkeypatch, backend_folder, tmp_path / "repository")


def config(inputs: Any = (X,), outputs: Any = (Y,), *, group: str = GROUP, limit: int = 8, extra: str = "") -> str:
    tensors = [*(f"input {text}" for text in inputs), *(f"output {text}" for text in outputs)]
    return "\n".join([f"backend: 'tensorrt' max_batch_size: {limit}", *tensors, group, extra])


def request(array: Any, **others: Any) -> Any:
    tensors = [Tensor("x", np.asarray(array, np.float32)), *(Tensor(name, value) for name, value in others.items())]
    return SimpleNamespace(inputs=lambda: tensors)


def refusal(stub: Stub, *arguments: Any, **options: Any) -> str:
    with pytest.raises(Exception) as caught:  # its class lives in a module loaded by path
        stub.open(*arguments, **options)
    assert type(caught.value).__name__ == "RefusedError"
    return str(caught.value)


DYNAMIC = (
    "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete "
)
CONTROL = (
    "sequence_batching { control_input { name: 'start' control { kind: CONTROL_SEQUENCE_START "
    "fp32_false_true: [0, 1] } } }"
)
BAD: dict[str, tuple[str, Engine, str]] = {
    "profile_range": (
        config(group=BOTH.replace("'1'", "'2'")), engine(),
        "Can not set the specified optimization profile 2[2] for m_0_0. Expected optimization profile index range 0-1",
    ),
    "profile_name": (config(group=BOTH.replace("'1'", "'second'")), engine(), "unable to parse 'second': stoi"),
    "profile_empty": (config(group=BOTH.replace("'1'", "''")), engine(), "profile name must not be empty"),
    "inputs": (
        config([X, tensor_text("z", "float32", [1])]), engine(),
        "unable to load model 'm', configuration expects 2 inputs, model provides at most 1",
    ),
    "input_name": (
        config([tensor_text("z", "float32", [1])]), engine(), "unexpected inference input 'z', allowed inputs are: x",
    ),
    "output_name": (
        config(outputs=[tensor_text("z", "float32", [1])]), engine(),
        "unexpected inference output 'z', allowed outputs are: y",
    ),
    "no_such_type": (
        config([tensor_text("x", "TYPE_FP64", [-1])]), engine(),
        "unsupported datatype TYPE_FP64 for input 'x' for model 'm'",
    ),
    "input_type": (
        config([tensor_text("x", "int32", [-1])]), engine(),
        "unexpected datatype TYPE_FP32 for inference input 'x', expecting TYPE_INT32 for m_0_0",
    ),
    "output_type": (
        config(outputs=[tensor_text("y", "float16", [-1])]), engine(),
        "unexpected datatype TYPE_FP32 for inference output 'y', expecting TYPE_FP16 for m_0_0",
    ),
    "unknown_type": (
        config(), engine(kind="FP8"),
        "unexpected datatype TYPE_<invalid> for inference input 'x', expecting TYPE_FP32 for m_0_0",
    ),
    "rank": (
        config([tensor_text("x", "float32", [3, 1])]), engine(),
        "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,-1]) but the model configuration specifies 3 "
        f"dimensions {DYNAMIC}shape [-1,3,1])",
    ),
    "dims": (
        config([tensor_text("x", "float32", [4])]), engine(shape=(-1, 3), profiles=(((1, 3),) * 2 + ((8, 3),),)),
        "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model configuration specifies 2 "
        f"dimensions {DYNAMIC}shape [-1,4])",
    ),
    "unbatched_dims": (
        config([tensor_text("x", "float32", [4])], limit=0), engine(),
        "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,-1]) but the model configuration specifies 1 "
        "dimensions (shape [4])",
    ),
    "out_of_profile": (
        config([tensor_text("x", "float32", [9])]), engine(),
        "model configuration specified invalid shape for input 'x' for model m. Error details: model expected the "
        "shape of dimension 1 to be between 1 and 8 but received 9",
    ),
    "batch": (
        config(limit=9), engine(),
        "autofill failed for model 'm': configuration specified max-batch 9 but TensorRT engine only supports "
        "max-batch 8",
    ),
    "shape_tensor": (
        config(), engine(is_shape=True),
        "input 'x' for model 'm' is a shape tensor but the model configuration doesn't mark it as a shape tensor.",
    ),
    "no_shape_tensor": (
        config([tensor_text("x", "float32", [-1], "is_shape_tensor: true")]), engine(),
        "input 'x' for model 'm' is incorrectly marked as a shape tensor in the model configuration.",
    ),
    "non_linear": (
        config(), engine(layout="CHW4"),
        "input 'x' for model 'm' uses a non-linear IO format, but 'is_non_linear_format_io' is incorrectly set to "
        "false in the model configuration.",
    ),
    "linear": (
        config([tensor_text("x", "float32", [-1], "is_non_linear_format_io: true")]), engine(),
        "input 'x' for model 'm' uses a linear IO format, but 'is_non_linear_format_io' is incorrectly set to true in "
        "the model configuration.",
    ),
    "not_here": (
        config([tensor_text("x", "TYPE_BF16", [-1])]), engine(kind="BF16"),
        "TYPE_BF16 is not supported by this stand-in backend; use the container",
    ),
    "forgotten_output": (
        config(), Engine([Port("x", "FLOAT", (-1, -1), SPANS)], [Port(name, "FLOAT", (-1, -1)) for name in "yz"], dict),
        "expected configuration for output 'z' for m_0_0",
    ),
    "control": (config(extra=CONTROL), engine(), "input 'start' not found for m_0_0"),
    "ragged": (
        config([tensor_text("x", "float32", [-1], "allow_ragged_batch: true")]), engine(),
        "allow_ragged_batch is not supported by this stand-in backend; use the container",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_configuration_that_is_not_the_engines_is_refused(stub: Stub, name: str) -> None:
    text, made, message = BAD[name]
    assert refusal(stub, text, made) == message


def test_only_a_gpu_will_do(stub: Stub) -> None:
    message = "unable to load model 'm', TensorRT backend supports only GPU device"
    assert refusal(stub, config(), engine(), kind="CPU") == message
    assert refusal(stub, config(), engine(), kind="MODEL") == message


def test_engines_that_cannot_be_loaded(stub: Stub) -> None:
    message = "unable to create TensorRT engine: the plan was made by another version"
    assert refusal(stub, config(), engine(), files={"model.plan": PLAN[:-1]}) == message
    version = stub._root / "m" / "1"
    (version / "model.plan").unlink()
    assert (
        refusal(stub, config(), engine(), files={})
        == f"unable to find '{version}/model.plan' for model instance 'm_0_0'"
    )


def test_a_server_that_has_no_such_gpu(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.formats.tensorrt.fake_tensorrt.Cuda.cudaSetDevice", lambda self, device: (101,))
    assert refusal(stub, config(), engine()) == "unable to set device for m: CUDA error 101: the reason"


@pytest.mark.parametrize(
    ("fields", "file"),
    [
        ("", "model.plan"),
        ("default_model_filename: 'own.plan'", "own.plan"),
        ("cc_model_filenames { key: '8.9' value: 'ada.plan' } default_model_filename: 'own.plan'", "ada.plan"),
        ("cc_model_filenames { key: '9.0' value: 'ada.plan' } default_model_filename: 'own.plan'", "own.plan"),
        ("cc_model_filenames { key: '9.0' value: 'ada.plan' }", "model.plan"),
    ],
)
def test_the_file_is_that_of_the_gpu_or_the_default(stub: Stub, fields: str, file: str) -> None:
    others = dict.fromkeys(("model.plan", "own.plan", "ada.plan"), b"another")
    stub.open(config(extra=fields), engine(), files={**others, file: PLAN})
    assert stub.cuda.device == 1


def test_the_other_flavour_has_a_folder_a_module_and_a_file_of_its_own(stub: Stub) -> None:
    model = stub.open(config(), engine(), backend="tensorrt_rtx", files={"model.engine": PLAN})
    assert_array_equal(model.execute([request([[1, 2]])])[0].outputs["y"], [[2, 4]])


def test_requests_become_one_run_and_each_gets_its_rows(stub: Stub) -> None:
    made = engine()
    model = stub.open(config(), made)
    arrays = [np.full((rows, 3), rows) for rows in (1, 4, 2)]
    responses = model.execute([request(array) for array in arrays])
    assert [context.shapes for context in made.contexts] == [{"x": (7, 3)}]
    for array, response in zip(arrays, responses, strict=True):
        assert_array_equal(response.outputs["y"], 2 * array)


def test_the_profile_is_the_nearest_of_those_the_group_names(stub: Stub) -> None:
    made = engine()
    model = stub.open(config(group=BOTH), made)
    for length in (8, 3, 31):
        assert model.execute([request(np.ones((1, length)))])[0].outputs["y"].shape == (1, length)
    assert [context.profile for context in made.contexts] == [0, 1]


def test_without_a_named_profile_only_the_first_is_used(stub: Stub) -> None:
    model = stub.open(
        config(group="instance_group { name: 'other' count: 1 kind: KIND_GPU profile: '1' }" + GROUP), engine()
    )
    error = model.execute([request(np.ones((1, 9)))])[0].error
    assert error.message == (
        "request specifies invalid shape for input 'x' for m_0_0. Error details: model expected the shape of "
        "dimension 1 to be between 1 and 8 but received 9"
    )
    assert model.execute([request(np.ones((1, 8)))])[0].error is None


def test_the_other_flavour_uses_all_profiles_since_none_can_be_named(stub: Stub) -> None:
    made = engine()
    model = stub.open(config(), made, backend="tensorrt_rtx", files={"model.engine": PLAN})
    for length in (3, 31):
        assert model.execute([request(np.ones((1, length)))])[0].outputs["y"].shape == (1, length)
    assert [context.profile for context in made.contexts] == [0, 1]


def test_a_failed_run_fails_every_request_of_it(stub: Stub) -> None:
    made = engine()
    model = stub.open(config(), made)
    made.works = False
    errors = [response.error.message for response in model.execute([request([[1]]), request([[2]])])]
    assert errors == ["unable to enqueue for inference m_0_0: the engine was not run: TensorRT gave no reason"] * 2


def test_an_answer_that_is_not_what_was_promised(stub: Stub) -> None:
    model = stub.open(config(outputs=[tensor_text("y", "float32", [2])]), engine())
    assert model.execute([request([[1, 2, 3]])])[0].error.message == (
        "output 'y' has shape [1,3], the model configuration specifies [-1,2]"
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-1, 1), ""),
        ((-1, 2), "expects all dimensions (conditionally first) to be 1 but the model specified shape [-1,2]"),
        ((2, -1), "expects the first dimension to be -1 but the model specified 2"),
    ],
)
def test_sequence_controls(stub: Stub, shape: tuple[int, int], message: str) -> None:
    made = Engine(
        [
            Port("x", "FLOAT", (-1, 2), (((1, 2), (8, 2), (8, 2)),)),
            Port("start", "FLOAT", shape, (((1, 1), (8, 1), (8, 1)),)),
        ],
        [Port("y", "FLOAT", (-1, 2))],
        lambda x, start: {"y": x * start},
    )
    text = config([tensor_text("x", "float32", [2])], [tensor_text("y", "float32", [2])], extra=CONTROL)
    if message:
        start = f"unexpected shape [{shape[0]},{shape[1]}] for control input 'start' for model m: "
        assert refusal(stub, text, made) == start + message
    else:
        model = stub.open(text, made)
        answer = model.execute([request([[1, 2]], start=np.array([[3]], np.float32))])[0].outputs["y"]
        assert_array_equal(answer, [[3, 6]])
