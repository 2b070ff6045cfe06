"""A command in a real pseudo-terminal, and what a person would then see and scroll back to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

from tests.integration.conftest import ROOT

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b.?|[^\x1b]", re.DOTALL)
_HEIGHT = 50


class Screen:
    """A terminal of so many columns that never forgets a line.

    Attributes:
        lines: everything that can be read at the end, scrolled out or not.
        wrapped: the rows that the terminal itself began, because the row above was full.
        erased: what each row held when it was erased: the frames of a live display.
        strange: control sequences that this terminal does not know.
        cursor_shown: whether the cursor can be seen.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0
        self.wrapped: set[int] = set()
        self.erased: list[str] = []
        self.strange: list[str] = []
        self.cursor_shown = True

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._rows]

    def feed(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            if token[2]:
                self._control(token[1], token[2])
            elif token[0] == "\n":
                self._down()
            elif token[0] == "\r":
                self._column = 0
            elif token[0].isprintable():
                self._put(token[0])
            else:
                self.strange.append(token[0])

    def _put(self, sign: str) -> None:
        if self._column == self._columns:
            self._down()
            self._column = 0
            self.wrapped.add(self._row)
        row = self._rows[self._row]
        row.extend(" " * (self._column + 1 - len(row)))
        row[self._column] = sign
        self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append([])

    def _control(self, argument: str, kind: str) -> None:
        if kind == "A":
            self._row = max(0, self._row - int(argument or 1))
        elif kind == "K" and argument == "2":
            self.erased.append(self.lines[self._row])
            self._rows[self._row].clear()
            self.wrapped.discard(self._row)
        elif argument == "?25":
            self.cursor_shown = kind == "h"
        elif kind != "m":
            self.strange.append(f"{argument}{kind}")


def run(*arguments: str | Path, columns: int, env: Mapping[str, str] | None = None) -> tuple[int, Screen]:
    """``python -m pipeline …`` at a terminal of so many columns; its exit code and what it left on the screen."""
    primary, replica = pty.openpty()
    fcntl.ioctl(replica, termios.TIOCSWINSZ, struct.pack("HHHH", _HEIGHT, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        stdin=replica,
        stdout=replica,
        stderr=replica,
        cwd=ROOT,
        env={**kept, "TERM": "xterm-256color", **(env or {})},
    )
    os.close(replica)
    screen, data = Screen(columns), bytearray()
    with os.fdopen(primary, "rb", buffering=0) as stream, contextlib.suppress(OSError):  # EIO: nobody has it open
        while chunk := stream.read(65536):
            data += chunk
    screen.feed(data.decode())
    return child.wait(timeout=60), screen
