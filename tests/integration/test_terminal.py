"""What the commands leave on the screen of a real terminal, wide and narrow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration import screen
from tests.integration.conftest import CONFIGS
from tests.integration.screen import Screen

MOST_LINES = 150
_COLOUR = re.compile(r"\[\d+(;\d+)*m")  # an escape code that lost its escape


def _build(config: Path, folder: Path, columns: int, *more: str) -> Screen:
    code, seen = screen.run(
        "build", config, "--repository", folder / "repository", "--work-dir", folder / "work", *more, columns=columns
    )
    assert code == 0, "\n".join(seen.lines)
    return seen


def _clean(seen: Screen) -> None:
    """No line that no person asked for, and nothing of a live display left behind."""
    text = "\n".join(seen.lines)
    assert len(seen.lines) <= MOST_LINES
    assert not _COLOUR.search(text)
    assert seen.strange == []
    assert "━" not in text
    assert seen.cursor_shown


def _table(seen: Screen) -> list[str]:
    """The rows of the last table; the terminal began none of them."""
    (head,) = (row for row, line in enumerate(seen.lines) if line.split()[:2] == ["variant", "v"])
    end = seen.lines.index("", head)
    assert not seen.wrapped & set(range(head, end))
    return [line for line in seen.lines[head + 1 : end] if not line.startswith("  no room in")]


def _moved(seen: Screen, stage: str) -> int:
    """How many different frames a stage's live row was seen in."""
    return len({line for line in seen.erased if f" {stage} " in line})


@pytest.mark.parametrize("columns", [80, 120])
def test_a_build_is_readable(columns: int, tmp_path: Path) -> None:
    seen = _build(CONFIGS / "from_onnx.yaml", tmp_path, columns)
    _clean(seen)
    keys = ("onnx", "onnx_fp16", "onnx_int8", "trt_fp16", "onnx_two_instances")
    assert [line.split()[:3] for line in _table(seen)] == [["✓", f"digits_{key}", "1"] for key in keys]
    assert sum("✓ " in line and "[digits" in line for line in seen.lines) > 15
    assert max(_moved(seen, stage) for stage in ("export[digits_onnx]", "measure", "server")) > 5


@pytest.mark.parametrize("columns", [80, 120])
def test_training_and_the_exporters_are_readable(columns: int, tmp_path: Path) -> None:
    seen = _build(CONFIGS / "text_classifier.yaml", tmp_path, columns, "--no-serve", "--set", "source.train.epochs=4")
    _clean(seen)
    assert len(_table(seen)) == 6
    assert any("epoch 1/4" in line for line in seen.erased)
    assert _moved(seen, "source[text_classifier]") > 5


@pytest.mark.parametrize(
    "words", [["plan", CONFIGS / "text_classifier.yaml"], ["doctor"], ["cache", "ls"], ["lint", CONFIGS / "models"]]
)
def test_other_commands_fit_eighty_columns(words: list[str | Path], tmp_path: Path) -> None:
    more = [] if words[0] == "lint" else ["--work-dir", tmp_path]
    _, seen = screen.run(*words, *more, columns=80)
    assert len(seen.lines) > 2
    assert "…" not in "".join(seen.lines)
    assert seen.strange == []
    to_copy = ("/", "install")  # paths and commands stay whole
    assert all(any(part in seen.lines[row - 1] for part in to_copy) for row in seen.wrapped)
    if words[0] == "plan":
        assert [line.split()[1] for line in seen.lines if line.startswith("  text_classifier_torchscript")] == [
            "torchscript"
        ]
