"""One log per variant: what each stage printed or warned, and the traceback when it failed."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pipeline.base import files


def _talkative() -> list[logging.Logger]:
    """The root logger, and torch's: they have handlers of their own, which print."""
    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    return [logging.root, *(logger for logger in known if logger.handlers and logger.name.startswith("torch"))]


class _Lines(io.TextIOBase):
    """Text onto an unbuffered file; what a full disk does not take is lost.

    A log is not what was asked for: the full disk is reported by the step that cannot write its result, and a log that
    raised as well would hide that.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._raw.write(text.encode("utf-8", "backslashreplace"))
        return len(text)


class StageLog:
    """While a stage runs, Python warnings and log records go to ``path``, and the traceback if it fails.

    The libraries underneath talk at will; a person should see this tool's own lines only, and find the rest here.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StageLog:
        with files.disk_errors(self._path, self._stage):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            stream = _Lines(self._stack.enter_context(self._path.open("ab", buffering=0)))
        self._stream = stream
        self._started = time.monotonic()
        stream.write(f"{time.strftime('%H:%M:%S')} {self._stage}: start\n")
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        for logger in _talkative():
            self._stack.callback(setattr, logger, "handlers", logger.handlers)
            logger.handlers = [] if logger.parent and logger.propagate else [handler]
        shown = warnings.showwarning
        warnings.showwarning = self._show_warning
        self._stack.callback(setattr, warnings, "showwarning", shown)
        return self

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self._stream.write(warnings.formatwarning(message, category, filename, lineno, line))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            traceback.print_exception(kind, error, trace, file=self._stream)
        seconds = time.monotonic() - self._started
        outcome = "failed" if error is not None else "done"
        self._stream.write(f"{time.strftime('%H:%M:%S')} {self._stage}: {outcome} after {seconds:.1f} s\n")
        self._stack.close()
