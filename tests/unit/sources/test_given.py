from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.base.errors import ConfigError, StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.schema.model import Source
from pipeline.sources import onnx as given

from .tiny import BATCHED, Workshop, digests

ONNX = {"onnx": {"file": "given/m.onnx"}}
SCRIPT = {"torchscript": {"file": "m.pt"}}


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "given").mkdir()
    return Workshop(tmp_path)


def write_onnx(path: Path, *, batch: int | str = "N", dtype: int = TensorProto.FLOAT, external: str = "") -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3), np.arange(12, dtype=np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, (batch, 4))],
        [helper.make_tensor_value_info("y", dtype, (batch, 3))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)


@pytest.mark.parametrize("external", ["", "weights.bin", "a_rather_long_name_" * 8 + ".data"])
def test_onnx_is_copied_as_given(workshop: Workshop, external: str) -> None:
    write_onnx(workshop.folder / "given/m.onnx", external=external)
    (workshop.folder / "given/unrelated.bin").write_bytes(b"x")
    values = workshop.prepare(ONNX)
    assert (values["kind"], values["notes"]) == ("onnx", [])
    out = workshop.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(filter(None, ["model.onnx", external]))
    assert (out / "model.onnx").read_bytes() == (workshop.folder / "given/m.onnx").read_bytes()
    opened = workshop.open(ONNX)
    assert (opened.kind, opened.module, opened.path) == ("onnx", None, out / "model.onnx")
    answer = opened.runtime.run({"x": np.ones((2, 4), np.float32)})["y"]
    assert answer.tolist() == [[18.0, 22.0, 26.0]] * 2


def test_digests_cover_external_data(workshop: Workshop) -> None:
    path = workshop.folder / "given/m.onnx"
    write_onnx(path, external="weights.bin")
    before = digests(Source.model_validate(ONNX), workshop.resolve)
    assert list(before) == ["given/m.onnx", "external data weights.bin"]
    data = path.with_name("weights.bin")
    data.write_bytes(bytes(reversed(data.read_bytes())))
    assert digests(Source.model_validate(ONNX), workshop.resolve) != before
    with pytest.raises(ConfigError, match="no such file"):
        digests(Source.model_validate({"onnx": {"file": "absent.onnx"}}), workshop.resolve)


def test_external_data_outside_its_folder_is_refused(workshop: Workshop) -> None:
    path = workshop.folder / "given/m.onnx"
    write_onnx(path, external="data_bin")
    (workshop.folder / "data_bi").write_bytes(b"secret")
    path.write_bytes(
        path.read_bytes().replace(b"\x08data_bin", b"\x0a../data_bi")  # a length byte, then the text
    )
    with pytest.raises(ConfigError, match="leaves its root"):
        given.external_files(path)


def test_every_difference_is_listed(workshop: Workshop) -> None:
    write_onnx(workshop.folder / "given/m.onnx", batch=1)
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype="int64", shape=("N", 4)),
            TensorSpec(name="mask", dtype="int64", shape=("N", 4)),
        ),
        outputs=(TensorSpec(name="z", dtype="float32", shape=("N", 3)),),
        batch="N",
    )
    with pytest.raises(StageError, match="are not the YAML's") as caught:
        workshop.prepare(ONNX, signature)
    assert caught.value.found.splitlines() == [
        "input x is float32; the YAML says int64",
        "input x has shape [1, 4]; the YAML says [N, 4]",
        "the file has no input mask; it has x",
        "the file has an output y that the YAML leaves out",
        "the file has no output z; it has y",
    ]


def test_damaged_onnx(workshop: Workshop) -> None:
    path = workshop.folder / "given/m.onnx"
    write_onnx(path, external="weights.bin")
    whole = path.read_bytes()
    for content in (b"", b"no model", whole[:60]):
        path.write_bytes(content)
        with pytest.raises(StageError, match="not a valid ONNX model"):
            workshop.prepare(ONNX)
    path.write_bytes(whole)
    path.with_name("weights.bin").unlink()
    with pytest.raises(StageError, match="not a valid ONNX model") as caught:
        workshop.prepare(ONNX)
    assert "weights.bin" in caught.value.found


class Subtract(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - right


def two(*names: str) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=("N",)) for name in names),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N",)),),
        batch="N",
    )


def save_script(path: Path) -> None:
    with no_deprecation_warnings():
        torch.jit.trace(Subtract(), (torch.ones(2), torch.ones(2))).save(path)


def test_torchscript_is_copied_as_given(workshop: Workshop) -> None:
    save_script(workshop.folder / "m.pt")
    assert workshop.prepare(SCRIPT, two("a", "b")) == {
        "kind": "torchscript", "labels": [], "accuracy": None, "notes": [],
    }  # fmt: skip
    assert (workshop.folder / "out/model.pt").read_bytes() == (workshop.folder / "m.pt").read_bytes()
    opened = workshop.open(SCRIPT, two("a", "b"))
    answer = opened.runtime.run({"a": np.full(3, 5, np.float32), "b": np.full(3, 2, np.float32)})
    assert answer["y"].tolist() == [3.0] * 3
    assert opened.kind == "torchscript"


def test_torchscript_takes_its_arguments_by_name_in_whatever_order(workshop: Workshop) -> None:
    save_script(workshop.folder / "m.pt")
    workshop.prepare(SCRIPT, two("right", "left"))
    opened = workshop.open(SCRIPT, two("right", "left"))
    answer = opened.runtime.run({"left": np.full(3, 5, np.float32), "right": np.full(3, 2, np.float32)})
    assert answer["y"].tolist() == [3.0] * 3


def test_torchscript_of_another_arity(workshop: Workshop) -> None:
    save_script(workshop.folder / "m.pt")
    with pytest.raises(StageError, match="takes other inputs") as caught:
        workshop.prepare(SCRIPT, BATCHED)
    assert caught.value.found == "forward(left, right), 2 of them required; `inputs` names x"


def test_damaged_torchscript(workshop: Workshop) -> None:
    save_script(workshop.folder / "m.pt")
    whole = (workshop.folder / "m.pt").read_bytes()
    torch.save({"a": torch.ones(1)}, workshop.folder / "state.pt")
    for content in (b"", b"no model", whole[: len(whole) // 2], (workshop.folder / "state.pt").read_bytes()):
        (workshop.folder / "m.pt").write_bytes(content)
        with pytest.raises(StageError, match="not a readable TorchScript file"):
            workshop.prepare(SCRIPT, two("a", "b"))
