from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from pipeline.report.fitting import Column, Fitting, Words


def _shown(item: Words | Fitting, width: int, *, terminal: bool = True) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=terminal, color_system=None).print(item, soft_wrap=True)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_line_is_broken_between_words() -> None:
    line = Words(Text("  for latency: one two three four"), indent=6)
    assert _shown(line, 20) == ["  for latency: one", "      two three four"]
    assert _shown(line, 33) == ["  for latency: one two three four"]
    assert _shown(line, 20, terminal=False) == ["  for latency: one two three four"]


def test_a_word_without_room_stays_whole_so_that_it_can_be_copied() -> None:
    path = "/a/path/longer/than/the/line"
    assert _shown(Words(Text(f"log {path} end")), 20) == ["log", f"    {path}", "    end"]


def test_the_style_goes_on_and_the_empty_line_stays() -> None:
    stream = io.StringIO()
    Console(file=stream, width=10, force_terminal=True).print(Words(Text("one two three", style="red")), soft_wrap=True)
    assert stream.getvalue().count("\x1b[31m") == 2
    assert _shown(Words(Text("")), 10) == [""]


@pytest.mark.parametrize(
    ("width", "head"), [(30, "name   format  size"), (20, "name   size"), (14, "name"), (9, "name")]
)
def test_columns_leave_in_their_order(width: int, head: str) -> None:
    columns = (Column(name="name"), Column(name="format", leaves=1), Column(name="size", right=True, leaves=2))
    rows = [tuple(map(Text, ("a_b_c", "onnx", "9.9 kB")))]
    lines = _shown(Fitting(columns=columns, rows=rows, folds="name"), width)
    assert lines[0].split() == head.split()
    assert "".join(line.split()[0] for line in lines[1:2]) == "a_b_c"


def test_a_table_without_rows_has_its_headings() -> None:
    columns = (Column(name="name"), Column(name="size", leaves=1))
    assert _shown(Fitting(columns=columns, rows=[], folds="name"), 80) == ["  name  size"]
