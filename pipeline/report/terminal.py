"""What a person sees while a build runs: one line per stage, live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
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
    """A stage being shown; several may be at a time, each told of by a thread of its own.

    Attributes:
        result: one line for the end of its row, set by whoever runs it.
        cached: whether the step store had it.
        started: when it began, by ``time.monotonic``.
        told_at: when a line of its progress was last printed.
        row: its row in the live display, while it has one.
    """

    def __init__(self, terminal: Terminal, name: str) -> None:
        self.name, self.result, self.cached = name, "", False
        self.started = self.told_at = time.monotonic()
        self.row: TaskID | None = None
        self._terminal = terminal

    def begin(self) -> None:
        """Count from now on, and show it: the work waited for its turn until here."""
        self.started = self.told_at = time.monotonic()
        self._terminal.show(self)

    def progress(self, message: str, fraction: float | None = None) -> None:
        """Show what is being done, and the share done (0 to 1) where it is known."""
        self._terminal.update(self, message, fraction)


class Terminal:
    """Progress and messages on ``console`` (standard error for commands whose standard output is data)."""

    def __init__(self, console: Console) -> None:
        console.file = console.file  # kept for good: libraries put others in the place of sys.stdout while it is live
        self.console = console
        self._width = _NAME_WIDTH
        self._lock = threading.Lock()
        self._live: Progress | None = None

    def align(self, names: Iterable[str]) -> None:
        """Make the names' column wide enough for all that will come."""
        self._width = max(_NAME_WIDTH, *(len(name) for name in names))

    def line(self, text: str) -> None:
        """Print one line; rich markup is honoured."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, *, waits: bool = False) -> Iterator[Stage]:
        """Show a stage to its end, its time and outcome: from its start or, where it waits, from ``Stage.begin`` on."""
        stage = Stage(self, name)
        if not waits:
            self.show(stage)
        try:
            try:
                yield stage
            finally:
                self._hide(stage)
        except BaseException:
            self._ended("[red]✗[/red]", stage, "[red]failed[/red]")
            raise
        mark, text = ("[cyan]=[/cyan]", "cached") if stage.cached else ("[green]✓[/green]", "")
        self._ended(mark, stage, " · ".join(part for part in (text, escape(stage.result)) if part))

    def show(self, stage: Stage) -> None:
        """Give a stage a row in the live display, which is there while any stage has one."""
        if not self.console.is_terminal:
            return
        with self._lock:
            if self._live is None:
                self._live = Progress(*self._columns(), console=self.console, transient=True)
                self._live.start()
            stage.row = self._live.add_task("", total=None, stage=self._padded(stage.name))

    def _columns(self) -> tuple[ProgressColumn, ...]:
        room = self.console.width - self._width - _SPINNER_AND_TIME_WIDTH
        bar = min(max(room - _LEAST_MESSAGE_WIDTH, _BAR_WIDTHS[0]), _BAR_WIDTHS[1])
        return (
            SpinnerColumn(),
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=bar),
            TimeElapsedColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=max(room - bar, 1))),
        )

    def _hide(self, stage: Stage) -> None:
        with self._lock:
            if self._live is None or stage.row is None:
                return
            self._live.remove_task(stage.row)
            stage.row = None
            if not self._live.task_ids:
                self._live.stop()
                self._live = None

    def _padded(self, name: str) -> str:
        width = self._width
        if self.console.is_terminal:
            width = min(width, self.console.width - _LEAST_RESULT_WIDTH - _MARK_AND_TIME_WIDTH)
        return escape(name.ljust(width))

    def update(self, stage: Stage, message: str, fraction: float | None) -> None:
        """Called by Stage.progress."""
        message, live = message.removeprefix(f"{stage.name}: "), self._live
        if live is not None and stage.row is not None:
            total = None if fraction is None else 1.0
            live.update(stage.row, description=escape(message), total=total, completed=fraction or 0.0)
        elif not self.console.is_terminal and time.monotonic() - stage.told_at >= _PLAIN_INTERVAL_S:
            stage.told_at = time.monotonic()
            share = "" if fraction is None else f" {fraction:4.0%}"
            self.line(f"  … {self._padded(stage.name)}{share} {escape(message)}")

    def _ended(self, mark: str, stage: Stage, text: str) -> None:
        row = Text.from_markup(f"  {mark} {self._padded(stage.name)} {time.monotonic() - stage.started:6.1f} s  ")
        result = row.cell_len
        indent = result if self.console.width - result >= _LEAST_RESULT_WIDTH else _NARROW_INDENT
        self.console.print(Words(row + Text.from_markup(text), indent), highlight=False, soft_wrap=True)
