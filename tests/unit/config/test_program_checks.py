"""What a `format: libtorch` variant needs, and what may not be made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.config.load import load

YAML = """\
name: net
source: {model: {callable: "os.path:join"}}
inputs:
  x: {shape: [N, 3, 8, 8]}
outputs:
  y: {shape: [N, 10]}
samples: {from: {dataset: digits}}
preprocess: {}
postprocess: {}
variants:
  ts: {format: torchscript}
  cpp: {from: ts, format: libtorch}
"""


def problems(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = YAML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "m.yaml").write_text(text)
    try:
        load(folder / "m.yaml")
    except ConfigError as error:
        return [f"{item.where.rpartition('m.yaml:')[2]}: {item.key}: {item.message}" for item in error.problems]
    return []


def test_a_program_of_a_torchscript_variant_is_sound(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    between = ("cpp: {from: ts,", "same: {from: ts, triton: {max_batch_size: 2}}\n  cpp: {from: same,")
    assert problems(tmp_path, between) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{from: ts, format: libtorch}", "{format: libtorch}",
         "12:3: variants.cpp: a C++ program runs a TorchScript file: expected `from`, naming a torchscript variant"),
        ("ts: {format: torchscript}", "ts: {format: onnx}",
         "12:27: variants.cpp.format: a libtorch program is made of a torchscript variant; `ts` is onnx"),
        ("preprocess: {}\npostprocess: {}\n", "",
         "10:27: variants.cpp.format: a libtorch program takes image files and answers with labels: the YAML lacks "
         "preprocess and postprocess"),
        ("postprocess: {}\n", "",
         "11:27: variants.cpp.format: a libtorch program takes image files and answers with labels: the YAML lacks "
         "postprocess"),
        ("libtorch}", "libtorch, triton: {max_batch_size: 4}}",
         "12:45: variants.cpp.triton: not to be set here: Triton does not serve a libtorch program"),
        ("libtorch}", "libtorch, precision: fp16}",
         "12:48: variants.cpp.precision: expected fp32, the only precision of libtorch; found fp16"),
        ("libtorch}", "libtorch}\n  again: {from: cpp}",
         "13:17: variants.again.from: `cpp` is a program; expected its model, `ts`"),
        ("variants:", "ensemble: {from: cpp}\nvariants:",
         "10:18: ensemble.from: `cpp` is a program, which Triton does not serve"),
    ],
)  # fmt: skip
def test_what_a_program_cannot_be_is_told(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert problems(tmp_path, (old, new)) == [expected]
