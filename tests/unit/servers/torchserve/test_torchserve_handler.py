"""TorchServe's handler, called as TorchServe calls it, from a folder that holds what the archive holds."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.base.values import Signature, TensorSpec
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.schema.torchserve import TorchServe
from pipeline.servers.torchserve import store as torchserve_store
from tests.models.make_models import Affine, Failing, Scale, save_script

PACKAGE = Path(torchserve_store.__file__).parents[2]
X = TensorSpec(name="x", dtype="float32", shape=("N", 3))
Y = TensorSpec(name="y", dtype="float32", shape=("N", 3))
SCALE = Signature(inputs=(X,), outputs=(Y,), batch="N")
GRAY = Preprocessing(
    formats=("png",), color="gray", resize=(1, 3), crop=None, interpolation="nearest", scale=255.0, mean=(0.0,),
    std=(1.0,), max_pixels=100, dtype="float32", layout="flat",
)  # fmt: skip
LABELLED = ("y", Postprocessing(activation="none", labels=("zero", "one", "two"), top_k=2, threshold=0.5))


class Context:
    """What a handler uses of ts.context.Context."""

    def __init__(self, folder: Path) -> None:
        self.system_properties = {"model_dir": str(folder), "gpu_id": None}
        self.model_yaml_config = yaml.safe_load((folder / "model-config.yaml").read_text())
        self.manifest = {"model": {"modelName": "tiny", "modelVersion": "1.0", "serializedFile": "model.pt"}}
        self.statuses: dict[int, int] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.types: dict[int, str] = {}

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        assert phrase
        self.statuses[idx] = code

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.headers.setdefault(idx, {})[key] = value

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.types[idx] = value

    def get_request_id(self, idx: int) -> str:
        return f"request-{idx}"


class Served:
    """A handler with the context of its last batch."""

    def __init__(self, module: Any, folder: Path) -> None:
        self._folder = folder
        self.handler = module.Handler()
        self.handler.initialize(Context(folder))
        self.passes = 0
        model = self.handler._model

        def counted(**inputs: torch.Tensor) -> Any:
            self.passes += 1
            return model(**inputs)

        self.handler._model = counted

    def ask(self, *rows: Mapping[str, Any]) -> list[Any]:
        self.context = Context(self._folder)
        answers = self.handler.handle(list(rows), self.context)
        assert set(self.context.types.values()) == {"application/json"}
        return [json.loads(answer) for answer in answers]


Make = Callable[..., Served]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    def build(
        module: torch.nn.Module, signature: Signature = SCALE, scores: tuple[str, Postprocessing] | None = None
    ) -> Served:
        for name in ("servers/torchserve/torchserve_handler.py", "images/preprocessing.py", "images/postprocessing.py"):
            shutil.copy(PACKAGE / name, tmp_path)
        save_script(module, tmp_path / "model.pt")
        config = torchserve_store.model_config(
            signature, TorchServe(batch_size=8, max_batch_delay_ms=10, workers=1, response_timeout_s=9),
            startup_timeout_s=9, scores=scores,
        )  # fmt: skip
        (tmp_path / "model-config.yaml").write_text(config)
        if scores:
            names = {str(index): label for index, label in enumerate(scores[1].labels)}
            (tmp_path / "index_to_name.json").write_text(json.dumps(names))
        spec = importlib.util.spec_from_file_location("served_handler", tmp_path / "torchserve_handler.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "served_handler", loaded)
        spec.loader.exec_module(loaded)
        return Served(loaded, tmp_path)

    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield build
    torch.set_num_threads(threads)
    for name in ("preprocessing", "postprocessing"):
        sys.modules.pop(name, None)


# torch 2.13 calls TorchScript deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def png(*pixels: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.array([pixels], np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def v2(shape: list[int], data: list[Any], **changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data, **changes}]}


def test_every_form_of_a_tensor_gives_the_same_answer(make: Make) -> None:
    served = make(Scale())
    array = np.array([[1, 2, 3]], np.float32)
    forms: list[dict[str, Any]] = [
        {"body": [[1, 2, 3.0]]},
        {"body": {"x": [[1, 2, 3]]}},
        {"data": bytearray(npy(array))},
        {"x": npy(array)},
        {"body": b' {"x": [[1, 2, 3]]}'},  # gRPC: JSON that TorchServe has not decoded
    ]
    assert served.ask(*forms) == [{"y": [[2.0, 4.0, 6.0]]}] * len(forms)
    assert served.passes == 1
    assert [served.context.headers[index]["x-batch-size"] for index in range(5)] == ["5"] * 5
    assert served.context.statuses == {}


def test_a_batch_is_one_pass_and_each_request_keeps_its_own_rows(make: Make) -> None:
    served = make(Scale())
    answers = served.ask({"body": [[1, 1, 1], [2, 2, 2]]}, {"body": [[3, 3, 3]]}, {"body": [[4, 4, 4]] * 3})
    assert served.passes == 1
    assert [answer["y"] for answer in answers] == [[[2.0] * 3, [4.0] * 3], [[6.0] * 3], [[8.0] * 3] * 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"body": [[1, 2]]}, "input x has shape [1, 2]; expected [N, 3]"),
        ({"body": [[[1, 2, 3]]]}, "input x has shape [1, 1, 3]; expected [N, 3]"),
        ({"body": []}, "input x has shape [0]; expected [N, 3]"),
        ({"body": npy(np.zeros((0, 3), np.float32))}, "input x has shape [0, 3]; expected [N, 3]"),
        ({"body": [[1, 2], [3]]}, "input x: rows of different lengths"),
        ({"body": [["a", "b", "c"]]}, "input x: expected numbers for float32"),
        ({"body": {"z": [[1, 2, 3]]}}, "inputs are z; expected x"),
        ({"body": npy(np.zeros((1, 3)))}, "input x is float64; expected float32"),
        ({"body": npy(np.zeros((1, 3), np.float32))[:-4]}, "no readable .npy"),
        ({"body": b"\x93NUMPY\x01\x00\x10\x00((((((((((((((((("}, "no readable .npy"),
        ({"body": npy(np.zeros((1, 3), np.float32))[:9]}, "no readable .npy"),
        ({"body": b"\x00\x01"}, "2 bytes that are neither .npy nor JSON"),
        ({"body": b"[1, 2"}, "Expecting"),
        ({}, "0 bytes that are neither .npy nor JSON"),
        ({"body": "text"}, "input x: expected numbers for float32"),
    ],
)
def test_a_wrong_request_is_refused_alone(make: Make, wrong: dict[str, Any], message: str) -> None:
    served = make(Scale())
    first, refused, last = served.ask({"body": [[1, 2, 3]]}, wrong, {"body": [[4, 5, 6]]})
    assert refused["code"] == 400
    assert refused["type"] == "BadRequestException"
    assert refused["message"].startswith(message)
    assert served.context.statuses == {1: 400}
    assert (first, last) == ({"y": [[2.0, 4.0, 6.0]]}, {"y": [[8.0, 10.0, 12.0]]})
    assert served.passes == 1


def test_an_array_of_objects_is_never_unpickled(make: Make) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("it was unpickled",))

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], object), allow_pickle=True)
    (answer,) = make(Scale()).ask({"body": stream.getvalue()})
    assert answer["code"] == 400
    assert "allow_pickle=False" in answer["message"]


def test_protocol_v2_gets_names_types_and_shapes_back(make: Make) -> None:
    served = make(Scale())
    question = {"id": "seven", **v2([2, 3], [1, 2, 3, 4, 5, 6])}
    first, second = served.ask({"body": question}, {"body": v2([1, 3], [[7, 8, 9]])})
    assert first == {
        "id": "seven",
        "model_name": "tiny",
        "model_version": "1.0",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]}],
    }
    assert (second["id"], second["outputs"][0]["data"]) == ("request-1", [14.0, 16.0, 18.0])
    assert served.passes == 1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (v2([1, 4], [1, 2, 3]), "input x: 3 values for shape [1, 4]"),
        (v2([3], [1, 2, 3]), "input x has shape [3]; expected [N, 3]"),
        (v2([-1, 3], [1, 2, 3]), "input x: 3 values for shape [-1, 3]"),
        (v2([2**62, 8, 3], [1, 2, 3]), "input x: 3 values for shape"),
        (v2([1, 3], [1, 2, 3], datatype="BYTES"), "input x: unknown datatype BYTES"),
        (v2([1, 3], [1, 2, 3], datatype="FP64"), "input x is float64; expected float32"),
        (v2([1, 3], [1, 2, 3], name=["x"]), "TypeError"),
        ({"inputs": []}, "inputs are none; expected x"),
    ],
)
def test_a_refusal_in_protocol_v2_has_all_that_torchserve_reads_for_grpc(
    make: Make, question: dict[str, Any], message: str
) -> None:
    served = make(Scale())
    refused, right = served.ask({"body": question}, {"body": v2([1, 3], [1, 2, 3])})
    assert refused.keys() == {"id", "model_name", "model_version", "outputs", "error"}
    assert refused["error"].startswith(message)
    assert refused["outputs"] == [{"name": "error", "datatype": "BYTES", "shape": [1], "data": [refused["error"]]}]
    assert served.context.statuses == {0: 400}
    assert right["outputs"][0]["data"] == [2.0, 4.0, 6.0]


def test_images_become_labels(make: Make) -> None:
    signature = Signature(inputs=(X,), outputs=(Y,), batch="N", image=GRAY)
    served = make(Scale(), signature, LABELLED)
    bomb = png(*range(101))
    rows = [{"body": png(0, 255, 128)}, {"data": b"no image"}, {"body": bomb}, {}, {"body": png(255, 0, 0)[:-25]}]
    answers = served.ask(*rows, {"body": v2([1, 3], [0.0, 0.0, 0.5])})
    assert answers[0] == [{"label": "one", "probability": 2.0}, {"label": "two", "probability": 1.003922}]
    assert served.context.statuses == dict.fromkeys((1, 2, 3, 4), 400)
    assert "no image in PNG" in answers[1]["message"]
    assert answers[2]["message"] == "101 x 1 pixels; at most 100 are accepted"
    assert answers[3]["message"] == "no bytes; expected an image file"
    assert answers[4]["message"].startswith("damaged or truncated")
    assert answers[5]["outputs"][0]["data"] == [0.0, 0.0, 1.0]  # tensors in, tensors out
    assert served.passes == 1


def test_what_nobody_foresaw_in_one_request_costs_the_others_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = make(Scale(), Signature(inputs=(X,), outputs=(Y,), batch="N", image=GRAY), LABELLED)
    module = sys.modules["served_handler"]
    real = module.tensor

    def tensor(data: bytes, how: Preprocessing) -> np.ndarray:
        if data == b"odd":
            raise AttributeError("'IFDRational' object has no attribute 'encode'")
        return real(data, how)

    monkeypatch.setattr(module, "tensor", tensor)
    first, odd, last = served.ask({"body": png(0, 255, 128)}, {"body": b"odd"}, {"body": png(0, 255, 128)})
    assert first == last == [{"label": "one", "probability": 2.0}, {"label": "two", "probability": 1.003922}]
    assert odd["message"] == "AttributeError: 'IFDRational' object has no attribute 'encode'"
    assert served.context.statuses == {1: 400}


def test_scores_that_give_no_probabilities_fail_their_own_request(make: Make) -> None:
    served = make(Scale(), SCALE, LABELLED)
    rows = [[np.nan, 0, 0], [1, 0, 0], [np.inf, 0, 0], [-np.inf, 1, 0]]
    nan, right, infinite, impossible = served.ask(*({"body": npy(np.array([row], np.float32))} for row in rows))
    for failed in (nan, infinite):
        assert (failed["code"], failed["type"]) == (500, "ModelException")
        assert failed["message"] == "the model's scores give no probabilities: NaN or infinity is among them"
    assert right == [{"label": "zero", "probability": 2.0}]
    assert impossible == [{"label": "one", "probability": 2.0}]
    assert served.context.statuses == {0: 500, 2: 500}
    assert served.passes == 1


class Raising:
    """A model that raises what TorchScript is not known to raise, with no words, on a negative sample."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if (x < 0).any():
            raise IndexError
        return x


def test_whatever_the_model_raises_stays_with_its_sample(make: Make) -> None:
    served = make(Scale())
    served.handler._model = Raising()
    first, failed, last = served.ask({"body": [[1, 1, 1]]}, {"body": [[-1, 0, 0]]}, {"body": [[2, 2, 2]]})
    assert (first["y"], last["y"]) == ([[1, 1, 1]], [[2, 2, 2]])
    assert (failed["code"], failed["message"]) == (500, "the model failed: IndexError")
    assert served.context.statuses == {1: 500}


class Pooled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def test_an_output_that_cannot_be_parted_is_asked_for_sample_by_sample(make: Make) -> None:
    served = make(Pooled(), Signature(inputs=(X,), outputs=(Y,), batch="N"))
    assert served.ask({"body": [[1, 1, 1]]}, {"body": [[2, 2, 2]]}) == [{"y": 3.0}, {"y": 6.0}]


def test_labels_are_those_of_the_file_in_the_archive(make: Make, tmp_path: Path) -> None:
    served = make(Scale(), SCALE, LABELLED)
    (tmp_path / "index_to_name.json").write_text(json.dumps({"0": "null", "1": "eins", "2": "zwei"}))
    served.handler.initialize(Context(tmp_path))
    one, many = served.ask({"body": [[1, 0, 0]]}, {"body": [[0, 1, 0], [0, 0, 0]]})
    assert one == [{"label": "null", "probability": 2.0}]
    assert many == [[{"label": "eins", "probability": 2.0}], []]


def test_a_sample_on_which_the_model_fails_costs_its_neighbours_nothing(make: Make) -> None:
    served = make(Failing(), Signature(inputs=(X,), outputs=(Y,), batch="N"))
    first, failed, last = served.ask({"body": [[1, 1, 1]]}, {"body": [[-1, 0, 0]]}, {"body": [[2, 2, 2]]})
    assert (first["y"], last["y"]) == ([[1, 1, 1]], [[2, 2, 2]])
    assert (failed["code"], failed["type"]) == (500, "ModelException")
    assert "negative input" in failed["message"]
    assert served.context.statuses == {1: 500}


def test_two_inputs_by_name_share_their_letters(make: Make) -> None:
    shift = TensorSpec(name="shift", dtype="float32", shape=("N", 3))
    signature = Signature(
        inputs=(X, shift), outputs=(Y, TensorSpec(name="z", dtype="float32", shape=("N", 3))), batch="N"
    )
    served = make(Affine(), signature)
    ones = npy(np.ones((1, 3), np.float32))
    by_json, by_npy, unequal, one = served.ask(
        {"body": {"x": [[1, 1, 1]], "shift": [[1, 1, 1]]}},
        {"x": ones, "shift": ones},
        {"body": {"x": [[1, 1, 1]], "shift": [[1, 1, 1], [2, 2, 2]]}},
        {"body": ones},
    )
    assert by_json == by_npy == {"y": [[4.0] * 3], "z": [[0.0] * 3]}
    assert unequal["message"] == "input shift has shape [2, 3]; expected [N, 3]"
    assert one["message"] == "inputs are body; expected x, shift"


def test_without_a_batch_dimension_each_request_is_a_pass_of_its_own(make: Make) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("L", 2))
    served = make(Scale(), Signature(inputs=(spec,), outputs=(Y,), batch=None))
    assert served.ask({"body": [[1, 2]]}, {"body": [[3, 4], [5, 6]]}) == [
        {"y": [[2.0, 4.0]]},
        {"y": [[6.0, 8.0], [10.0, 12.0]]},
    ]
    assert served.passes == 2


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("uint8", [[255, 0, 1]], True),
        ("uint8", [[256, 0, 1]], False),
        ("int64", [[1.0, 2.0, 3.0]], False),
        ("int8", [[-129, 0, 0]], False),
        ("bool", [[True, False, True]], True),
        ("bool", [[1, 0, 1]], False),
        ("float16", [[1, 2, 3]], True),
    ],
)
def test_numbers_of_json_are_taken_only_where_the_type_holds_them(
    make: Make, dtype: str, value: list[Any], fits: bool
) -> None:
    served = make(
        Echo(), Signature(inputs=(TensorSpec(name="x", dtype=dtype, shape=("N", 3)),), outputs=(Y,), batch="N")
    )
    (answer,) = served.ask({"body": value})
    assert (answer == {"y": value}) is fits, answer
    assert served.context.statuses == ({} if fits else {0: 400})


class Echo(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_float16_goes_as_fp32_in_protocol_v2_which_has_no_field_for_it(make: Make) -> None:
    spec = TensorSpec(name="x", dtype="float16", shape=("N", 3))
    served = make(Echo(), Signature(inputs=(spec,), outputs=(Y,), batch="N"))
    (answer,) = served.ask({"body": v2([1, 3], [1, 2, 3], datatype="FP16")})
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]
