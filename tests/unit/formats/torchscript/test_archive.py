import enum
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest
import torch

from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.formats.torchscript import archive

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Mode(enum.Enum):
    DOUBLE = 1
    TRIPLE = 2


class Both(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


def helper(x: torch.Tensor, mode: Mode) -> torch.Tensor:
    return x * 2 if mode == Mode.DOUBLE else x * 3


class Uses(torch.nn.Module):
    """One of everything a code record can define: classes, a function, an enumeration, a named tuple, constants."""

    names: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.names = ["a", "b"]
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)])
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> Both:
        for layer in self.layers:
            x = layer(x)
        if x.sum() > 0:
            return Both(helper(x, Mode.DOUBLE), torch.tensor([1.5]))
        return Both(helper(x, Mode.TRIPLE), torch.tensor([2.5]))


def saved(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(1)
    module = Uses().eval()
    torch.jit.save(torch.jit.script(module), str(folder / "raw.pt"))
    archive.canonicalise(folder / "raw.pt", folder / "model.pt")
    return folder / "model.pt"


def test_every_kind_of_definition_survives(tmp_path: Path) -> None:
    file = saved(tmp_path / "a")
    with no_deprecation_warnings():
        loaded = torch.jit.load(str(file))
        raw = torch.jit.load(str(tmp_path / "a" / "raw.pt"))
    for sign in (1.0, -1.0):
        x = sign * torch.tensor([[5.0, 1.0, 2.0]])
        for ours, theirs in zip(loaded(x), raw(x), strict=True):
            assert torch.equal(ours, theirs)
    assert loaded.names == ["a", "b"]
    assert [name for name, _ in loaded.named_buffers()] == ["steps"]
    assert len(list(loaded.parameters())) == 6


def test_bytes_do_not_depend_on_what_was_compiled_before(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).eval()
    for name in ("first", "second"):
        torch.jit.save(torch.jit.trace(module, torch.ones(1, 3)), str(tmp_path / f"{name}.pt"))
        (tmp_path / name).mkdir()
        archive.canonicalise(tmp_path / f"{name}.pt", tmp_path / name / "model.pt")
    with ZipFile(tmp_path / "first.pt") as first, ZipFile(tmp_path / "second.pt") as second:
        assert first.read("first/data.pkl") != second.read("second/data.pkl")  # numbers of classes, which must go
    assert (tmp_path / "first/model.pt").read_bytes() == (tmp_path / "second/model.pt").read_bytes()


def test_one_code_record_with_plain_names(tmp_path: Path) -> None:
    with ZipFile(saved(tmp_path / "a")) as content:
        names = content.namelist()
        code = content.read("model/code/__torch__.py").decode()
    assert [name for name in names if "/code/" in name] == ["model/code/__torch__.py"]
    assert not [name for name in names if name.endswith("debug_pkl")]
    assert "class Uses(Module):" in code
    assert "class Linear(Module):" in code
    assert "class Linear__2(Module):" in code
    assert "test_archive" not in code


def test_weights_are_written_as_they_were(tmp_path: Path) -> None:
    with ZipFile(saved(tmp_path / "a")) as ours, ZipFile(tmp_path / "a" / "raw.pt") as raw:
        weights = [name for name in raw.namelist() if name.startswith("raw/data/")]
        assert len(weights) == 7
        for name in weights:
            assert ours.read(name.replace("raw/", "model/", 1)) == raw.read(name)


def test_constants_are_sorted_whatever_the_hash_seed(tmp_path: Path) -> None:
    with ZipFile(saved(tmp_path / "a")) as content:
        code = content.read("model/code/__torch__.py").decode()
    constants = [
        line.split()[0]
        for line in code.split("class Linear(Module)")[1].split("def ")[0].splitlines()
        if "Final[" in line
    ]
    assert constants == ["in_features", "out_features"]
