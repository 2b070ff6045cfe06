"""One log per variant: what each stage printed or warned, and the traceback when it failed."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
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


@contextlib.contextmanager
def captured(path: Path, *, output: bool = False) -> Iterator[None]:
    """Let this process's Python warnings and log records go to ``path``, in a folder that exists, for a while.

    The libraries underneath talk at will; a person should see this tool's own lines only, and find the rest here. With
    ``output`` all that is written to standard output and error goes there too, and stays so.
    """
    with path.open("ab", buffering=0) as raw, contextlib.ExitStack() as stack:
        stream = _Lines(raw)
        for descriptor in (1, 2) if output else ():
            os.dup2(raw.fileno(), descriptor)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        for logger in _talkative():
            stack.callback(setattr, logger, "handlers", logger.handlers)
            logger.handlers = [] if logger.parent and logger.propagate else [handler]
        stack.callback(setattr, warnings, "showwarning", warnings.showwarning)
        warnings.showwarning = partial(_show_warning, stream)
        yield


def _show_warning(
    stream: TextIO | io.TextIOBase,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    stream.write(warnings.formatwarning(message, category, filename, lineno, line))


class StageLog:
    """What a stage does, and the traceback if it fails, are added to a log; see ``captured``.

    Without ``capture`` another process does the work, and writes to the same file.
    """

    def __init__(self, path: Path, stage: str, *, capture: bool = True) -> None:
        self._path, self._stage, self._capture = path, stage, capture
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StageLog:
        with files.disk_errors(self._path, self._stage):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = _Lines(self._stack.enter_context(self._path.open("ab", buffering=0)))
        self._started = time.monotonic()
        self._stream.write(f"{time.strftime('%H:%M:%S')} {self._stage}: start\n")
        if self._capture:
            self._stack.enter_context(captured(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._capture:
            traceback.print_exception(kind, error, trace, file=self._stream)
        seconds = time.monotonic() - self._started
        outcome = "failed" if error is not None else "done"
        self._stream.write(f"{time.strftime('%H:%M:%S')} {self._stage}: {outcome} after {seconds:.1f} s\n")
        self._stack.close()
