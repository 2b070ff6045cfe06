"""Rules of TensorFlow's sources, of SavedModels and of `tfserving`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.config.load import load

KERAS = """\
name: net
source: {keras: {file: m.keras}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 3]}}
samples: {from: {arrays: x.npy}}
variants:
  sm: {format: saved_model}
  onnx: {format: onnx}
"""


def _problems(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = KERAS
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    for name in ("m.keras", "x.npy", "user.py"):
        (folder / name).touch()
    (folder / "net.yaml").write_text(text)
    try:
        load(folder / "net.yaml")
    except ConfigError as error:
        return [f"{problem.key}: {problem.message}" for problem in error.problems]
    return []


TRAIN = ("{keras: {file: m.keras}}", '{keras: {train: {callable: "user.py:f", data: {arrays: x.npy}}}}')


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (TRAIN, ("{from: {arrays: x.npy}}", "{from: data.test}")),
        (("{keras: {file: m.keras}}", "{saved_model: {directory: .}}"),),
        (("samples:", "tfserving: {}\nsamples:"),),
        (("samples:", 'tfserving: {from: sm}\ntriton: {target: "25.03"}\nsamples:'),),
        (("{format: onnx}", "{format: onnx, opset: 18}\n  int8: {from: onnx, precision: int8}\n  b: {from: sm}"),),
        (("samples:", 'triton: {target: "25.02"}\nsamples:'),),
    ],
)
def test_sound_configurations_pass(tmp_path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    assert _problems(tmp_path, *changes) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            (("sm: {format: saved_model}", "sm: {format: torchscript}"),),
            "variants.sm.format: a TensorFlow model cannot be made into TorchScript; expected saved_model or onnx",
        ),
        (
            (("{keras: {file: m.keras}}", '{model: {callable: "user.py:f"}}'),),
            "variants.sm.format: a SavedModel is made of `keras` or `saved_model`; the source is `model`",
        ),
        (
            (("{format: onnx}", "{format: onnx, opset: 19}"),),
            "variants.onnx.opset: expected at most 18, the newest that tf2onnx writes; found 19",
        ),
        (
            (("{format: onnx}", "{format: onnx, exporter: dynamo}"),),
            "variants.onnx.exporter: chooses among torch's exporters; a TensorFlow model goes through tf2onnx",
        ),
        (
            (("{format: saved_model}", "{format: saved_model, precision: fp16}"),),
            "variants.sm.precision: expected fp32, the only precision of saved_model; found fp16",
        ),
        (
            (TRAIN, ("[N, 4]", "[4]"), ("[N, 3]", "[3]")),
            "source.keras.train: Keras trains on batches: every input and output shape starts with a letter",
        ),
        (
            (("samples:", "tfserving: {from: smm}\nsamples:"),),
            "tfserving.from: no variant is called `smm`; did you mean `sm`?",
        ),
        (
            (("samples:", "tfserving: {from: onnx}\nsamples:"),),
            "tfserving.from: expected a variant of format saved_model; `onnx` is none",
        ),
        (
            (("samples:", "tfserving: {}\nsamples:"), ("  sm: {format: saved_model}\n", "")),
            "tfserving: TF-Serving serves SavedModels: add a variant such as `saved_model: {format: saved_model}`",
        ),
        ((("m.keras", "n.keras"),), "source.keras.file: no such file: "),
        ((("{keras: {file: m.keras}}", "{saved_model: {directory: m.keras}}"),), "expected a folder; "),
        ((("{keras: {file: m.keras}}", "{keras: {file: .}}"),), "source.keras.file: expected a file; "),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, changes: tuple[tuple[str, str], ...], expected: str) -> None:
    (problem,) = _problems(tmp_path, *changes)
    assert expected in problem


def test_no_triton_after_25_02_serves_a_saved_model(tmp_path: Path) -> None:
    newer = ("samples:", 'triton: {target: "25.03"}\nsamples:')
    (alone,) = _problems(tmp_path, newer)
    assert alone.startswith("variants.sm: Triton 25.03 has no TensorFlow backend; 25.02 was the last release with one")
    assert "`tfserving` section" in alone
    second = ("{format: onnx}", "{format: onnx}\n  other: {from: sm}")
    served = ("samples:", 'tfserving: {from: sm}\ntriton: {target: "25.03"}\nsamples:')
    (other,) = _problems(tmp_path, served, second)
    assert other.startswith("variants.other: Triton 25.03 has no TensorFlow backend")


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        ("", "postprocess: Triton 25.03 serves no variant that could answer: add one such as `onnx: {format: onnx}`"),
        ("ensemble: {from: sm}\n", "ensemble.from: expected a variant that Triton 25.03 serves; `sm` is saved_model"),
    ],
)
def test_an_ensemble_asks_what_triton_serves(tmp_path: Path, ensemble: str, expected: str) -> None:
    images = ("{x: {shape: [N, 4]}}", "{x: {shape: [N, 8, 8, 1], layout: NHWC}}\npreprocess: {}\npostprocess: {}")
    given = ("samples: {from: {arrays: x.npy}}\n", "samples: {from: {dataset: digits}}\n")
    labelled, lone = ("shape: [N, 3]", "shape: [N, 3], labels: [a, b, c]"), ("  onnx: {format: onnx}\n", "")
    newer = ("variants:", f'{ensemble}tfserving: {{}}\ntriton: {{target: "25.03"}}\nvariants:')
    assert _problems(tmp_path, images, given, labelled, lone, newer) == [expected]
    older = (newer[0], f"{ensemble}tfserving: {{}}\nvariants:")
    assert _problems(tmp_path, images, given, labelled, lone, older) == []
