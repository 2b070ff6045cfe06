"""Exports that take seconds: the same bytes from other processes, and layers with loops of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.formats.onnx import export as onnx_export
from tests.unit.formats import tiny

ROOT = Path(__file__).parents[2]

# Run with a copy of the models' source in the working directory: line numbers are equal, paths are not.
SCRIPT = """
import sys
from pathlib import Path
import torch
import models as tiny
from pipeline.formats.onnx import export as onnx
from pipeline.formats.torchscript import export as torchscript

if "noise" in sys.argv:  # another history of the process
    torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.ones(1, 4))
torch.manual_seed(0)
text = tiny.case(tiny.Text(), tiny.TEXT, tiny.text_rows(7, 7, 9))
loop = tiny.case(tiny.Recurrent(), tiny.XY, tiny.floats(1, 4))
for name, case in (("text", text), ("loop", loop)):
    for module, options in (
        (torchscript, {"method": "auto"}),
        (onnx, {"exporter": "auto", "opset": 20, "max_opset": 21, "max_ir_version": 10, "simplify": True}),
    ):
        out = Path("out") / name / module.__name__.split(".")[-2]
        out.mkdir(parents=True)
        module.export(case.source, signature=case.signature, golden=case.golden, out_dir=out, **options)
"""


def exported(folder: Path, hash_seed: str, *arguments: str) -> dict[str, str]:
    folder.mkdir(parents=True)
    shutil.copy(tiny.__file__, folder / "models.py")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    files = sorted(item for item in (folder / "out").rglob("*") if item.is_file())
    return {
        item.relative_to(folder / "out").as_posix(): hashlib.sha256(item.read_bytes()).hexdigest() for item in files
    }


def test_equal_models_give_equal_bytes_in_any_process_and_directory(tmp_path: Path) -> None:
    first = exported(tmp_path / "a", "1")
    assert sorted(first) == [
        "loop/onnx/model.onnx", "loop/torchscript/model.pt", "text/onnx/model.onnx", "text/torchscript/model.pt",
    ]  # fmt: skip
    assert exported(tmp_path / "another" / "deeper", "2", "noise") == first


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU])
def test_recurrent_layers_keep_their_dynamic_length_on_every_export(layer: type, tmp_path: Path) -> None:
    """Torch caches how it first took such a layer apart; a second export must not unroll it to one length."""

    class Memory(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = layer(4, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cells(x)[0][:, -1]

    shaped = tiny.signature([tiny.spec("x", "N", "L", 4)], [tiny.spec("y", "N", 3)])
    case = tiny.case(Memory(), shaped, tiny.floats(1, 6, 4))
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        outcome = onnx_export.export(
            case.source, signature=shaped, golden=case.golden, exporter="dynamo", opset=20, max_opset=21,
            max_ir_version=10, simplify=True, out_dir=tmp_path / name,
        )  # fmt: skip
        assert list(outcome.notes) == []
        files.append((tmp_path / name / "model.onnx").read_bytes())
    assert files[0] == files[1]
