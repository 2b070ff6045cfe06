"""What a model is, told without running it: TorchScript's text, Python's syntax tree, ONNX graphs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.base.errors import ConfigError
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.importing import model, screen, tensors
from pipeline.importing.manifest import Manifest
from pipeline.importing.model import Found
from tests.unit.lint.lint_repository import CODE, onnx_bytes, torchscript_bytes

NET = """import torch
class Net(torch.nn.Module):
    def __init__(self, width=4): ...
    def forward(self, x, y, *, z=1): ...
"""


def found(folder: Path, name: str, data: bytes, net: str | None = None) -> Found:
    (folder / name).write_bytes(data)
    if net is not None:
        (folder / "net.py").write_text(net)
    manifest = Manifest(
        name="t", version="1", handler="base_handler", handler_file="", serialized_file=name,
        model_file="" if net is None else "net.py", requirements_file="", config_file="",
    )  # fmt: skip
    return model.find(folder, manifest, folder / "t.mar")


def state(**tensors_: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    torch.save(tensors_ or {"w": torch.zeros(1)}, stream)
    return stream.getvalue()


class WritesOnLoad(torch.nn.Module):
    """What a hostile TorchScript file can do: TorchScript runs ``__setstate__`` when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_torchscript_that_writes_when_it_is_loaded_is_refused_without_loading_it(tmp_path: Path) -> None:
    stream, target = io.BytesIO(), tmp_path / "written"
    with no_deprecation_warnings():
        torch.jit.save(torch.jit.script(WritesOnLoad(str(target))), stream)
    with pytest.raises(ConfigError, match=r"refused as unsafe[\s\S]*calls torch.save"):
        found(tmp_path, "model.pt", stream.getvalue())
    assert not target.exists()
    with no_deprecation_warnings():
        torch.jit.load(io.BytesIO(stream.getvalue()))
    assert target.exists(), "loading no longer runs __setstate__: the docstring of model.py can be relaxed"


@pytest.mark.parametrize(
    "call",
    [
        "torch.from_file('/etc/passwd')",
        "ops.aten.save(x, '/x')",
        "torch . save (x, '/x')",
        "(torch).save(x, '/x')",
        "torch.\\\n    save(x, '/x')",
        "(torch. # a comment: '\n    save)(x, '/x')",
        "(torch '# no comment' .save)(x, '/x')",
        "x.save('/x')",
        "getattr(torch, \"save\")(x, '/x')",
        "getattr(t, 'save')(x, '/x')",
        "getattr(t, \"sa\" 've')(x, '/x')",
        "getattr(t, '''s\\141ve''')(x, '/x')",
        "getattr(((torch)), name)(x, '/x')",
        "getattr(getattr(ops, 'aten'), name)(x, '/x')",
        "ops.image.write_file('/x', x)",
    ],
)
@pytest.mark.parametrize("ending", [".py", ".PY"])
def test_other_ways_to_files_are_refused(tmp_path: Path, call: str, ending: str) -> None:
    code = CODE.replace("return torch.mul", f"_ = {call}\n    return torch.mul")
    with pytest.raises(ConfigError, match="refused as unsafe"):
        found(tmp_path, "model.pt", torchscript_bytes(code).replace(b"__torch__.py", f"__torch__{ending}".encode()))


@pytest.mark.parametrize(
    "line",
    [
        "# torch.save(x, '/x')",
        'saved = "torch.save(x)"',
        'ops.prim.RaiseException("\\"save\\" it")',
        "_0 = getattr(getattr(self, \"0\"), 'saved')",
        "save_ = self.from_files",
    ],
)
def test_what_only_looks_like_a_way_to_files_is_not_refused(tmp_path: Path, line: str) -> None:
    code = CODE.replace("return torch.mul", f"{line}\n    return torch.mul")
    assert found(tmp_path, "model.pt", torchscript_bytes(code)).kind == "torchscript"


# each of these, in the place of `torch.save`, really writes when the file is loaded
@pytest.mark.parametrize(
    "name",
    [
        "torch.save",
        "(torch).save",
        "torch.\\\nsave",
        "(torch. # c\n save)",
        'getattr(torch, "save")',
        'getattr(torch, "sa" "ve")',
        "getattr(torch, 's\\141ve')",
    ],
)
def test_ways_to_name_an_operator_that_torch_takes_are_refused(tmp_path: Path, name: str) -> None:
    stream, target = io.BytesIO(), tmp_path / "written"
    with no_deprecation_warnings():
        torch.jit.save(torch.jit.script(WritesOnLoad(str(target))), stream)
    stream.seek(0)
    hostile = rewritten(stream, lambda code: code.replace("torch.save(", f"{name}("), ".PY")
    with pytest.raises(ConfigError, match="refused as unsafe"):
        found(tmp_path, "model.pt", hostile)
    assert not target.exists()
    with no_deprecation_warnings():
        torch.jit.load(io.BytesIO(hostile))
    assert target.exists()


def rewritten(source: io.BytesIO, change: Callable[[str], str], ending: str) -> bytes:
    """A TorchScript file with other code, whose files of code end otherwise."""
    made = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            if info.filename.endswith(".py"):
                new.writestr(info.filename.removesuffix(".py") + ending, change(old.read(info).decode()))
            else:
                new.writestr(info.filename, old.read(info))
    return made.getvalue()


def test_code_of_the_oldest_torch_is_refused(tmp_path: Path) -> None:
    """Its model.json names the members that hold code, by any name."""
    stream = io.BytesIO(torchscript_bytes())
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("model/Model.JSON", "{}")
    with pytest.raises(ConfigError, match=r"before 1\.2"):
        found(tmp_path, "model.pt", stream.getvalue())


def test_a_file_that_shows_torch_other_members_is_refused(tmp_path: Path) -> None:
    """torch takes the list of members where the file's end says that it is; zipfile takes what lies before that end."""
    hidden, shown = (torchscript_bytes(CODE.replace("torch.mul", name)) for name in ("torch.save", "torch.view"))
    hidden += shown[:-22] + hidden[-22:]
    with zipfile.ZipFile(io.BytesIO(hidden)) as archive:
        assert b"torch.save" not in archive.read("model/code/__torch__.py")
    with pytest.raises(ConfigError, match="not where it should be"):
        found(tmp_path, "model.pt", hidden)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_code_that_is_packed_in_other_ways_is_damage(tmp_path: Path, method: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torchscript_bytes())) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            new.writestr(info, old.read(info), method)
    for data in (stream.getvalue(), stream.getvalue().replace(b"BZh", b"BZx").replace(b"\x5d\0\0", b"\xff\0\0")):
        with pytest.raises(ConfigError, match=f"damaged[\\s\\S]*method {method}, not deflate"):
            found(tmp_path, "model.pt", data)


def test_a_model_of_too_many_records_is_refused_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_MAX_RECORDS", 1)
    data = torchscript_bytes()
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ConfigError, match="3 records; at most 1"):
        found(tmp_path, "model.pt", data)


def test_a_trace_tells_its_arguments(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with no_deprecation_warnings():
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), stream)
    result = found(tmp_path, "model.pt", stream.getvalue())
    assert result.kind == "torchscript"
    assert [tensor.name for tensor in result.inputs] == ["input"]
    assert [tensor.name for tensor in result.outputs] == ["output"]


@pytest.mark.parametrize("data", [torchscript_bytes()[:-30], b"PK\x03\x04", b"", b"ELF", b"\x80\x02"])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"of a kind that the pipeline has no source for|damaged"):
        found(tmp_path, "model.so", data)


def test_a_damaged_member_is_damage(tmp_path: Path) -> None:
    data = torchscript_bytes().replace(b"torch.mul", b"torch.add")
    with pytest.raises(ConfigError, match="the model in the archive is damaged"):
        found(tmp_path, "model.pt", data)


def test_code_too_long_to_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "MAX_TEXT_BYTES", 100)
    with pytest.raises(ConfigError, match="too long to read"):
        found(tmp_path, "model.pt", torchscript_bytes())


def test_much_code_in_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_MAX_CODE_BYTES", len(CODE) + 10)
    stream = io.BytesIO(torchscript_bytes())
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("model/code/more.py", "#" * 11)
    with pytest.raises(ConfigError, match="too long to read"):
        found(tmp_path, "model.pt", stream.getvalue())


@pytest.mark.parametrize("start", ['"', "'", '"""', "'''"])
def test_a_text_without_an_end_is_looked_at_once(start: str) -> None:
    """Were each escaped quote the start of another look, this took days."""
    assert screen._search(start + rf"\{start}" * 500_000 + "\\") == ""


def test_a_checkpoint_names_its_only_class(tmp_path: Path) -> None:
    result = found(tmp_path, "w.pth", state(), NET)
    assert (result.kind, result.callable, result.todo) == ("checkpoint", "net.py:Net", "")
    assert [tensor.name for tensor in result.inputs] == ["x", "y"]


@pytest.mark.parametrize(
    ("net", "todo"),
    [
        (NET + "class Other: ...\n", "must define one class, as TorchServe demands too; it defines Net, Other"),
        ("x = 1\n", "it defines none"),
        (NET.replace("width=4", "width, *, depth"), "Net cannot be made without width, depth: give them as `args`"),
        ("def broken(:\n", "no Python that can be parsed"),
        ("a" * 5_000_000, "too long to read"),
        ("raise SystemExit(1)\n" + "(" * 2000, "no Python that can be parsed"),
        (None, "the archive has no model file"),
    ],
)
def test_checkpoints_that_need_a_word(tmp_path: Path, net: str | None, todo: str) -> None:
    assert todo in found(tmp_path, "w.pth", state(), net).todo


def test_a_subclass_without_its_own_forward(tmp_path: Path) -> None:
    result = found(tmp_path, "w.pth", state(), "class Net(ResNet):\n    def __init__(self): super().__init__()\n")
    assert (result.callable, result.inputs) == ("net.py:Net", ())


def test_a_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "touched",))

    stream = io.BytesIO()
    torch.save(Trap(), stream)
    assert found(tmp_path, "w.pth", stream.getvalue(), NET).kind == "checkpoint"
    assert not (tmp_path / "touched").exists()


def test_onnx_names_that_the_yaml_cannot_have_are_replaced_everywhere(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["input.1"], ["chosen"])], "b", [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["cond"], ["out:0"], then_branch=branch, else_branch=branch)], "g",
        [
            helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("out:0", TensorProto.FLOAT, ["n", 4])],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    result = found(tmp_path, "net.onnx", made.SerializeToString())
    assert [tensor.name for tensor in (*result.inputs, *result.outputs)] == ["input_1", "cond", "out_0"]
    assert result.file == "net_renamed.onnx"
    renamed = onnx.load(tmp_path / result.file)
    onnx.checker.check_model(renamed, full_check=True)
    assert b"input.1" not in renamed.SerializeToString()
    assert (tmp_path / "net.onnx").read_bytes() == made.SerializeToString()


def test_onnx_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        found(tmp_path, "net.onnx", b"\x0a\xff\xff not protobuf")


def test_external_data_may_not_leave_the_archive(tmp_path: Path) -> None:
    made = onnx.load_from_string(onnx_bytes())
    tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "secret").write_bytes(bytes(4))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="a path leaves its root"):
        found(tmp_path / "folder", "net.onnx", made.SerializeToString())


@pytest.mark.parametrize(
    ("shape", "out_shape", "expected"),
    [
        (("batch", 4), ("batch", 4), (("N", 4), ("N", 4))),
        (("batch", "seq"), ("batch", "seq"), (("N", "D1"), ("N", "D1"))),
        (("B", "L"), ("B", "L"), (("N", "L"), ("N", "L"))),
        (("batch", 4), (None, 4), (("N", 4), ("N", 4))),
        ((None, 4), (None, 4), (("N", 4), ("N", 4))),
        (("a", 4), ("b", 4), (("D1", 4), ("D2", 4))),
        (("L", 4), (4, 4), (("L", 4), (4, 4))),
        (("a", "N"), (1, "N"), (("D1", "N_2"), (1, "N_2"))),
        ((1, 4), (1, 4), ((1, 4), (1, 4))),
        ((), (), ((), ())),
    ],
)
def test_dimensions_become_letters(
    shape: tuple[object, ...], out_shape: tuple[object, ...], expected: tuple[object, object]
) -> None:
    graph = onnx.load_from_string(onnx_bytes(shape, out_shape=out_shape)).graph  # type: ignore[arg-type]
    (x,), (y,) = tensors.of_onnx(graph)
    assert (x.shape, y.shape) == expected
    assert x.dtype == y.dtype == "float32"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x:float32", "cannot be read"),
        ("a.b:float32:N", "cannot be read"),
        (":float32:N", "cannot be read"),
        ("x:float:N,3", "no dtype 'float'"),
        ("x:float32:n,3", "no dimension 'n'"),
        ("x:float32:N,0", "no dimension '0'"),
        ("x:float32:N,-1", "no dimension '-1'"),
        ("x:float32:N,３", "no dimension '３'"),
    ],
)
def test_tensors_on_the_command_line_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        tensors.given(text, "--input")


def test_tensors_on_the_command_line() -> None:
    assert tensors.given("x:float32:[N, 3]", "--input").shape == ("N", 3)
    assert tensors.given("x:int64:", "--input").shape == ()


def test_what_is_told_completes_what_is_known() -> None:
    known = (tensors.Tensor(name="a"), tensors.Tensor(name="b"))
    told = [tensors.given("b:int64:N,2", "--input")]
    assert tensors.merged(known, told, "--input", by_position=False)[1].dtype == "int64"
    anew = [tensors.given(f"{name}:int64:N", "--input") for name in ("p", "q")]
    assert tensors.merged(known, anew, "--input", by_position=True) == tuple(anew)
    with pytest.raises(ConfigError, match="the model has a, b"):
        tensors.merged(known, anew, "--input", by_position=False)
    with pytest.raises(ConfigError, match="twice"):
        tensors.merged(known, [told[0], told[0]], "--input", by_position=False)


def test_a_zip_of_something_else_is_no_model(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ConfigError, match="no source for"):
        found(tmp_path, "model.pt", stream.getvalue())
