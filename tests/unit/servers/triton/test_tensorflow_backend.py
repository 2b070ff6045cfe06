"""The tensorflow stand-in's rules, without TensorFlow: what it refuses, in the C++ backend's words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.servers.triton import stub

FLOAT, STRING, BFLOAT16 = 1, 7, 14


@pytest.fixture(scope="module")
def backend(backend_folder: Path) -> Any:
    return stub.load(backend_folder / "tensorflow")


def info(*shape: int, dtype: int = FLOAT, unknown: bool = False) -> SimpleNamespace:
    dims = [SimpleNamespace(size=size) for size in shape]
    return SimpleNamespace(
        name="graph:0", dtype=dtype, tensor_shape=SimpleNamespace(dim=dims, unknown_rank=unknown)
    )  # fmt: skip


def tensor(name: str, *dims: int, kind: str = "TYPE_FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": list(dims), **more}


def config(inputs: list[Any], outputs: list[Any], limit: int = 4, **more: Any) -> dict[str, Any]:
    return {"name": "m", "max_batch_size": limit, "input": inputs, "output": outputs, **more}


X = {"x": info(-1, 3)}


@pytest.mark.parametrize(
    ("infos", "settings"),
    [
        (X, config([tensor("x", 3)], [])),
        ({"x": info(-1, -1)}, config([tensor("x", 3)], [])),
        ({"x": info(unknown=True)}, config([tensor("x", 3)], [])),
        ({"x": info(-1)}, config([tensor("x", 1, reshape={})], [])),
        ({"x": info(2, 3)}, config([tensor("x", 2, 3)], [], limit=0)),
    ],
)
def test_inputs_that_fit(backend: Any, infos: dict[str, Any], settings: dict[str, Any]) -> None:
    assert backend._checked_inputs(SimpleNamespace(inputs=infos), settings) == {"x": "graph:0"}


@pytest.mark.parametrize(
    ("infos", "settings", "message"),
    [
        (X, config([tensor("y", 3)], []), "unexpected inference input 'y', allowed inputs are: x"),
        ({**X, "w": info(-1)}, config([tensor("x", 3)], []),
         "unable to load model 'm', configuration expects 1 inputs, model provides 2"),
        ({"x": info(1, 3)}, config([tensor("x", 3)], []),
         "model 'm', tensor 'x': for the model to support batching the shape should have at least 1 dimension and "
         "the first dimension must be -1; but shape expected by the model is [1,3]"),
        (X, config([tensor("x", 4)], []),
         "the model expects 2 dimensions (shape [-1,3]) but the model configuration specifies 2 dimensions (an initial "
         "batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete shape "
         "[-1,4])"),
        (X, config([tensor("x", 3)], [], limit=0),
         "expects 2 dimensions (shape [-1,3]) but the model configuration specifies 1 dimensions (shape [3])"),
        (X, config([tensor("x", 3, kind="TYPE_INT32")], []),
         "unable to load model 'm', configuration expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32"),
        ({"x": info(-1, 3, dtype=BFLOAT16)}, config([tensor("x", 3)], []), "model provides TYPE_<invalid>"),
    ],
)  # fmt: skip
def test_inputs_that_do_not(backend: Any, infos: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(backend.RefusedError) as caught:
        backend._checked_inputs(SimpleNamespace(inputs=infos), settings)
    assert message in str(caught.value)


def test_a_dynamic_size_of_an_output_must_be_configured_as_such(backend: Any) -> None:
    settings = config([], [tensor("y", 3)])
    with pytest.raises(backend.RefusedError, match=r"shape \[-1,-1\]"):
        backend._checked_outputs(SimpleNamespace(outputs={"y": info(-1, -1)}), settings)
    (checked,) = backend._checked_outputs(SimpleNamespace(outputs={"y": info(-1, 3)}), settings)
    assert checked == "graph:0"
    strings = config([], [tensor("y", 3, kind="TYPE_STRING")])
    assert backend._checked_outputs(SimpleNamespace(outputs={"y": info(-1, 3, dtype=STRING)}), strings)


def test_a_sequence_control_counts_as_an_input(backend: Any) -> None:
    controls = {"control_input": [{"name": "start", "control": [{"fp32_false_true": [0, 1]}]}]}
    settings = config([tensor("x", 3)], [], sequence_batching=controls)
    with pytest.raises(backend.RefusedError, match="configuration specified sequence control 'start', but model"):
        backend._checked_inputs(SimpleNamespace(inputs=X), settings)
    assert backend._checked_inputs(SimpleNamespace(inputs={**X, "start": info(-1, 1)}), settings)


def test_the_signature(backend: Any) -> None:
    known = {"__saved_model_init_op": 0, "b": 1, "a": 2}
    assert backend._definition(known, "b") == 1
    assert backend._definition(known, "") == 2
    assert backend._definition({**known, "serving_default": 3}, "") == 3
    for found, wanted in ((known, "c"), ({"__saved_model_init_op": 0}, "")):
        with pytest.raises(backend.RefusedError, match=r"unable to load model '.*', expected '.*' signature"):
            backend._definition(found, wanted)


def test_what_is_refused_before_anything_is_opened(backend: Any, tmp_path: Path) -> None:
    import json

    def load(**more: Any) -> str:
        settings = {**config([tensor("x", 3)], [tensor("y", 3)]), "platform": "tensorflow_savedmodel", **more}
        arguments = {
            "model_config": json.dumps(settings), "model_instance_kind": more.get("kind", "CPU"),
            "model_repository": str(tmp_path), "model_version": "1",
        }  # fmt: skip
        with pytest.raises(backend.RefusedError) as caught:
            backend.TritonPythonModel().initialize(arguments)
        return str(caught.value)

    assert load() == f"unable to find '{tmp_path}/1/model.savedmodel' for model instance 'm'"
    assert load(platform="tensorflow_graphdef") == "platform tensorflow_graphdef not supported for TensorFlow model 'm'"
    assert load(kind="GPU").startswith("KIND_GPU is not supported by this stand-in")
    assert (
        load(input=[tensor("x", 3, kind="TYPE_BF16")])
        == "unsupported datatype 'TYPE_BF16' for tensor 'x' for model 'm'"
    )
    parameters = backend.stand_in.Parameters({"parameters": {"TF_NUM_INTRA_THREADS": {"string_value": "-1"}}})
    with pytest.raises(backend.RefusedError, match="'TF_NUM_INTRA_THREADS' must be non-negative number"):
        backend._threads(parameters, "TF_NUM_INTRA_THREADS", "m")
