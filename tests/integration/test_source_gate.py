"""A source model whose own golden samples speak against it is refused before anything is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tests.integration.conftest import Built, run

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))
"""
CHECKPOINT = """
name: net
source: {checkpoint: {file: net.pt, model: {callable: "net.py:Net"}}}
inputs: {image: {shape: [N, 3, 8, 8], layout: NCHW}}
preprocess: {scale: 1}
outputs: {logits: {shape: [N, 10], labels: digits}}
samples: {from: {dataset: digits}, count: 64}
variants: {onnx: {format: onnx}, int8: {from: onnx, precision: int8}}
"""
TRAINED = """
name: net
source: {train: {model: {callable: "net.py:Net"}, data: {dataset: digits}, epochs: 10}}
inputs: {image: {shape: [N, 3, 8, 8], layout: NCHW}}
outputs: {logits: {shape: [N, 10], labels: digits}}
samples: {count: 64}
variants: {onnx: {format: onnx}}
"""
SWAPPED = 'outputs.logits.labels=["9", "8", "7", "6", "5", "4", "3", "2", "1", "0"]'
LAYOUT = ("--set", "inputs.image.shape=[N, 8, 8, 3]", "--set", "inputs.image.layout=NHWC")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's code, its weights (trained here on pixels of 0..255), and the two configurations."""
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(NET)
    names: dict[str, type[torch.nn.Module]] = {}
    exec(NET, names)
    torch.manual_seed(0)
    net = names["Net"]()
    data = load_digits()
    pixels = torch.from_numpy((data.images * (255 / 16)).astype(np.float32))[:, None].repeat(1, 3, 1, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(pixels), torch.from_numpy(data.target)).backward()
        optimizer.step()
    torch.save(net.state_dict(), folder / "net.pt")
    (folder / "checkpoint.yaml").write_text(CHECKPOINT)
    (folder / "trained.yaml").write_text(TRAINED)
    return folder


@pytest.fixture(scope="module")
def right(folder: Path) -> Built:
    return build(folder, "checkpoint", folder / "right")


def build(folder: Path, name: str, where: Path, *arguments: str) -> Built:
    where.mkdir(exist_ok=True)
    return run(folder / f"{name}.yaml", where, ("--no-serve", *arguments))


def refused(done: Built) -> str:
    """The error of a build that made nothing."""
    assert done.exit_code == 4, done.output
    report = done.report
    assert not any(step.startswith("export") for step in report["durations_s"])
    assert all(row["version"] is None for row in report["variants"])
    assert not list(done.repository.glob("*/1"))
    error: str = report["error"]
    assert error in done.output.replace("\n" + " " * 2, "\n  ")
    for suspect in ("labels", "preprocess", "layout", "gates: {accuracy: off}"):
        assert suspect in error
    return error


def test_the_right_source_is_built(right: Built) -> None:
    assert right.exit_code == 0, right.output
    assert right.variant("net_onnx")["accuracy"]["value"] > 0.8


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(("--set", SWAPPED), id="labels in another order"),
        pytest.param(("--set", "preprocess.scale=255"), id="not scaled as in training"),
        pytest.param(("--set", "preprocess={scale: 1, mean: [5000], std: [10]}"), id="another mean and std"),
        pytest.param(LAYOUT, id="NHWC where the model reads NCHW"),
    ],
)
def test_a_wrong_source_is_refused(folder: Path, tmp_path: Path, change: tuple[str, ...]) -> None:
    error = refused(build(folder, "checkpoint", tmp_path, *change))
    assert "samples[net]: the source model's answers are wrong" in error
    assert "of 64 labelled golden samples" in error
    assert "no better than guessing (" in error


def test_a_trained_source_is_held_against_its_own_held_out_accuracy(folder: Path, tmp_path: Path) -> None:
    error = refused(build(folder, "trained", tmp_path, "--set", SWAPPED))
    assert "of its own 359 held-out samples" in error


def test_off_overrules(folder: Path, tmp_path: Path) -> None:
    done = build(folder, "checkpoint", tmp_path, "--set", SWAPPED, "--set", "gates.accuracy=off")
    assert done.exit_code == 0, done.output
    assert done.variant("net_onnx")["version"] == 1
    assert done.variant("net_onnx")["accuracy"]["value"] < 0.2  # told all the same


def test_under_the_least_accuracy_the_source_is_named_and_nothing_is_repaired(folder: Path, tmp_path: Path) -> None:
    done = build(folder, "checkpoint", tmp_path, "--set", "gates.accuracy.min=1.0")
    assert done.exit_code == 4
    for name in ("net_onnx", "net_int8"):
        row = done.variant(name)
        assert row["error"].startswith(f"{name}: the source model itself is refused by a gate")
        assert "under the least, 100.00%" in row["error"]
        assert row["version"] is None
    assert list(done.report["durations_s"]) == ["source[net]", "samples[net]"]


def test_a_variant_alone_may_ask_for_more(folder: Path, tmp_path: Path) -> None:
    done = build(folder, "checkpoint", tmp_path, "--set", "variants.int8.gates.accuracy.min=1.0")
    assert done.exit_code == 4
    assert done.variant("net_onnx")["version"] == 1
    assert done.variant("net_int8")["version"] is None


def test_a_cached_build_judges_again_and_imports_no_heavy_library(right: Built) -> None:
    done = right.again(env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.exit_code == 0, done.output
    imported = {line.rpartition("|")[2].strip() for line in done.output.splitlines() if line.startswith("import time:")}
    assert "pipeline.build.source_gate" in imported
    assert not imported & {"torch", "tensorflow", "onnxruntime", "scipy", "sklearn"}


def test_weights_that_a_callable_reads_itself_are_read_again_when_they_change(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"import torch\n{NET}\ndef trained():\n    net = Net()\n"
        '    net.load_state_dict(torch.load(__file__.replace("own.py", "own.pt")))\n    return net\n'
    )
    (tmp_path / "own.yaml").write_text(
        CHECKPOINT.replace(
            'checkpoint: {file: net.pt, model: {callable: "net.py:Net"}}', 'model: {callable: "own.py:trained"}'
        )
    )
    weights = torch.load(folder / "net.pt")
    torch.save(weights, tmp_path / "own.pt")
    first = run(tmp_path / "own.yaml", tmp_path / "out", ["--no-serve", "--variant", "onnx"])
    assert first.exit_code == 0, first.output
    assert first.again().variant("net_onnx")["cached"]
    weights["3.bias"] += 0.25
    torch.save(weights, tmp_path / "own.pt")
    again = first.again()
    assert "own.pt, which it read, has changed" in " ".join(again.output.split())
    assert again.variant("net_onnx")["version"] == 2
