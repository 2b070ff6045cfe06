"""Rules on the ensemble: each is met by a file that breaks it, and let be by one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.config.load import load

BASE = """\
name: net
source: {model: {callable: "os.path:join"}}
inputs:
  x: {shape: [N, 3, 8, 8]}
outputs:
  y: {shape: [N, 10]}
preprocess: {}
postprocess: {}
ensemble: {from: onnx}
samples: {from: {dataset: digits}}
variants:
  onnx: {format: onnx}
  ts: {format: torchscript}
"""
ENGINES = (
    "{format: onnx, triton: {max_batch_size: 0}}\n  trt: {from: onnx, format: tensorrt, triton: {max_batch_size: 2}}"
)
ONLY_AN_ENGINE = (
    ("  ts: {format: torchscript}\n", ""),
    ("onnx: {format: onnx}", "trt: {from: onnx, format: tensorrt}"),
)


def _check(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = BASE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "net.yaml"
    path.write_text(text)
    try:
        load(path)
    except ConfigError as error:
        return [str(problem).removeprefix(f"{path}:") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("ensemble: {from: onnx}\n", ""),),
        (("ensemble: {from: onnx}", "ensemble: {}"),),
        (("ensemble: {from: onnx}\n", ""), ("postprocess: {}\n", "")),
        (("{from: onnx}", "{from: trt}"), ("{format: onnx}", ENGINES)),  # an engine, where it is named
        (("{from: onnx}", "{from: ts}"), ("{format: onnx}", "{format: onnx, triton: {max_batch_size: 0}}")),
        (("ensemble: {from: onnx}\n", ""), ("postprocess: {}\n", ""), ("  ts:", "  postprocess:")),
    ],
)
def test_sound_configurations_pass(tmp_path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    assert _check(tmp_path, *changes) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            (("preprocess: {}\npost", "post"), ("ensemble: {from: onnx}\n", "")),
            "7:14: postprocess: needs `preprocess` beside it, which says how an image becomes the input",
        ),
        ((("postprocess: {}\n", ""),), "8:11: ensemble: needs `postprocess` beside it"),
        ((("{from: onnx}", "{from: onx}"),), "9:18: ensemble.from: no variant is called `onx`; did you mean `onnx`?"),
        (
            (("{format: onnx}", "{format: onnx, triton: {max_batch_size: 0}}"),),
            "9:18: ensemble.from: Triton must batch the variant that answers, and `onnx` has max_batch_size 0",
        ),
        (
            (("ensemble: {from: onnx}\n", "triton: {max_batch_size: 0}\n"),),
            "8:14: postprocess: Triton must batch the variant that answers, and `onnx` has max_batch_size 0",
        ),
        (
            (("[N, 3, 8, 8]", "[1, 3, 8, 8]"), ("[N, 10]", "[10]"), ("ensemble: {from: onnx}\n", "")),
            "8:14: postprocess: Triton must batch the variant that answers, and `onnx` has max_batch_size 0 "
            "(the shapes do not all start with the same letter)",
        ),
        (
            (*ONLY_AN_ENGINE, ("ensemble: {from: onnx}\n", "")),
            "11:15: variants.trt.from: no variant is called `onnx`; known here: trt",
        ),
        (
            (("  ts:", "  postprocess:"),),
            "13:16: variants.postprocess: this name is the ensemble's postprocessing model's; choose another",
        ),
        ((("  ts:", "  net:"),), "13:8: variants.net: this name is the ensemble's; choose another"),
    ],
)
def test_each_rule_says_where_and_what(tmp_path: Path, changes: tuple[tuple[str, str], ...], expected: str) -> None:
    assert _check(tmp_path, *changes) == [expected]


def test_a_format_that_is_no_text_is_told_once(tmp_path: Path) -> None:
    changes = (("ensemble: {from: onnx}", "ensemble: {}"), ("  onnx: {format: onnx}", "  a: {from: ts, format: [1]}"))
    (line,) = _check(tmp_path, *changes)
    assert "variants.a.format" in line
    assert "found [1]" in line
