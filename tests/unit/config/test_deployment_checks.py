"""Rules between deployments and the variants they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.config.load import load

BASE = """\
name: net
source: {{model: {{callable: "os.path:join"}}}}
inputs: {{x: {{shape: {shape}}}}}
outputs: {{y: {{shape: {shape}}}}}
samples: {{from: {{dataset: digits}}}}
variants:
  onnx: {{format: onnx}}
  {variants}
torchserve: {torchserve}
"""
SCRIPT = "ts: {format: torchscript}\n  two: {from: ts}"


def _problems(folder: Path, torchserve: str, variants: str = SCRIPT, shape: str = "[N, 3]") -> list[str]:
    path = folder / "net.yaml"
    path.write_text(BASE.format(torchserve=torchserve, variants=variants, shape=shape))
    try:
        load(path)
    except ConfigError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("torchserve", "shape"),
    [("{}", "[N, 3]"), ("{from: ts}", "[N, 3]"), ("{from: two, batch_size: 64}", "[N, 3]"), ("{batch_size: 1}", "[3]")],
)
def test_sound_sections_pass(tmp_path: Path, torchserve: str, shape: str) -> None:
    assert _problems(tmp_path, torchserve, shape=shape) == []


@pytest.mark.parametrize(
    ("torchserve", "variants", "expected"),
    [
        ("{}", "", "torchserve: TorchServe runs TorchScript: expected a variant of `format: torchscript`"),
        ("{from: tss}", SCRIPT, "torchserve.from: no variant is called `tss`; did you mean `ts`?"),
        ("{from: onnx}", SCRIPT, "torchserve.from: expected a torchscript variant; `onnx` is onnx"),
        ("{batch_size: 0}", SCRIPT, "torchserve.batch_size: expected an integer >= 1; found 0"),
        ("{batchsize: 1}", SCRIPT, "torchserve.batchsize: unknown key; did you mean `batch_size`?"),
    ],
)
def test_broken_rules_are_told(tmp_path: Path, torchserve: str, variants: str, expected: str) -> None:
    assert expected in _problems(tmp_path, torchserve, variants)


def test_requests_are_joined_only_where_there_is_a_batch(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, "{batch_size: 2}", shape="[3]")
    assert problem.startswith("torchserve.batch_size: expected 1: the model has no batch dimension")
