"""What a person sees while a build runs: one line per stage, live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from pipeline.report.fitting import Words

_PLAIN_INTERVAL_S = 5.0
_NAME_WIDTH = 28
_BAR_WIDTHS = (5, 20)
_SPINNER_AND_TIME_WIDTH = 12
_MARK_AND_TIME_WIDTH = 15
_LEAST_MESSAGE_WIDTH = 24  # the bar is shortened for it
_LEAST_RESULT_WIDTH = 24
_NARROW_INDENT = 6


class Stage:
    """A stage being shown.

    Attributes:
        result: one line for the end of its row, set by whoever runs it.
        cached: whether the step store had it.
    """

    def __init__(self, terminal: Terminal, name: str) -> None:
        self.result = ""
        self.cached = False
        self._terminal, self._name = terminal, name

    def progress(self, message: str, fraction: float | None = None) -> None:
        """Show what is being done, and the share done (0 to 1) where it is known."""
        self._terminal.update(self._name, message, fraction)


class Terminal:
    """Progress and messages on ``console`` (standard error for commands whose standard output is data)."""

    def __init__(self, console: Console) -> None:
        console.file = console.file  # kept for good: libraries put others in the place of sys.stdout while it is live
        self.console = console
        self._width = _NAME_WIDTH
        self._live: Progress | None = None
        self._told_at = 0.0

    def align(self, names: Iterable[str]) -> None:
        """Make the names' column wide enough for all that will come."""
        self._width = max(_NAME_WIDTH, *(len(name) for name in names))

    def line(self, text: str) -> None:
        """Print one line; rich markup is honoured."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a stage from its start to its end, with the time it took and how it ended."""
        stage = Stage(self, name)
        started = time.monotonic()
        self._told_at = started
        try:
            with self._progress_bar(name):
                yield stage
        except BaseException:
            self._ended("[red]✗[/red]", name, started, "[red]failed[/red]")
            raise
        mark, text = ("[cyan]=[/cyan]", "cached") if stage.cached else ("[green]✓[/green]", "")
        self._ended(mark, name, started, " · ".join(part for part in (text, escape(stage.result)) if part))

    @contextlib.contextmanager
    def _progress_bar(self, name: str) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        room = self.console.width - self._width - _SPINNER_AND_TIME_WIDTH
        bar = min(max(room - _LEAST_MESSAGE_WIDTH, _BAR_WIDTHS[0]), _BAR_WIDTHS[1])
        columns = (
            SpinnerColumn(),
            TextColumn(self._padded(name)),
            BarColumn(bar_width=bar),
            TimeElapsedColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=max(room - bar, 1))),
        )
        with Progress(*columns, console=self.console, transient=True) as live:
            live.add_task("", total=None)
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _padded(self, name: str) -> str:
        width = self._width
        if self.console.is_terminal:
            width = min(width, self.console.width - _LEAST_RESULT_WIDTH - _MARK_AND_TIME_WIDTH)
        return escape(name.ljust(width))

    def update(self, name: str, message: str, fraction: float | None) -> None:
        """Called by Stage.progress."""
        message = message.removeprefix(f"{name}: ")
        if self._live is not None:
            total = None if fraction is None else 1.0
            self._live.update(
                self._live.task_ids[0], description=escape(message), total=total, completed=fraction or 0.0
            )
        elif time.monotonic() - self._told_at >= _PLAIN_INTERVAL_S:
            self._told_at = time.monotonic()
            share = "" if fraction is None else f" {fraction:4.0%}"
            self.line(f"  … {self._padded(name)}{share} {escape(message)}")

    def _ended(self, mark: str, name: str, started: float, text: str) -> None:
        row = Text.from_markup(f"  {mark} {self._padded(name)} {time.monotonic() - started:6.1f} s  ")
        result = row.cell_len
        indent = result if self.console.width - result >= _LEAST_RESULT_WIDTH else _NARROW_INDENT
        self.console.print(Words(row + Text.from_markup(text), indent), highlight=False, soft_wrap=True)
