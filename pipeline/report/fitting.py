"""Text and tables as wide as the terminal; where there is none, a log, which is searched, gets its lines whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GAP = 2
_LOG_COLUMNS = 200
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Words:
    """A line that goes on, indented, in the next between two words; a word longer than the terminal stays whole."""

    text: Text
    indent: int = 4

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            yield self.text
            return
        first, *more = self.text.divide(self._breaks(options.max_width))
        first.rstrip()
        yield first
        for line in more:
            line.rstrip()
            yield Text(" " * self.indent) + line

    def _breaks(self, columns: int) -> Iterator[int]:
        start, room = 0, columns
        for word in _WORD.finditer(self.text.plain):
            if word.end() - start > room and word.start() > start:
                start, room = word.start(), columns - self.indent
                yield start


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        right: whether it holds figures.
        leaves: when it is left out of a table that is too wide: the smallest number first, 0 never.
    """

    name: str
    right: bool = False
    leaves: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """A table without the columns that the terminal has no room for, and a line that says which these are.

    The text of the column called ``folds`` is folded when nothing else helps.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    folds: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = options.max_width if console.is_terminal else max(options.max_width, _LOG_COLUMNS)
        kept = self._kept(columns)
        table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, _GAP, 0, 0))
        for column in kept:
            justify: Literal["left", "right"] = "right" if column.right else "left"
            table.add_column(column.name, justify=justify, no_wrap=column.name != self.folds, overflow="fold")
        shown = [index for index, column in enumerate(self.columns) if column in kept]
        for row in self.rows:
            table.add_row(*(row[index] for index in shown))
        yield from console.render(Padding(table, (0, 0, 0, _GAP), expand=False), options.update(width=columns))
        if left := [column.name for column in self.columns if column not in kept]:
            yield Words(Text(f"  no room in {columns} columns for: {', '.join(left)}", style="dim"))

    def _kept(self, columns: int) -> list[Column]:
        kept = list(self.columns)
        going = sorted((column for column in kept if column.leaves), key=lambda column: column.leaves)
        widths = {
            column: max(len(column.name), *(row[index].cell_len for row in self.rows), 0)
            for index, column in enumerate(self.columns)
        }
        while going and sum(_GAP + widths[column] for column in kept) > columns:
            kept.remove(going.pop(0))
        return kept
