"""Keeps the exporters' chatter off the terminal: they print, log and warn about their own workings."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO

import torch

_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnxslim")


class _ThisThreadOnly(io.TextIOBase):
    """Swallows what one thread writes; other threads (a progress display) still reach the real stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._owner = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._owner else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


class _NothingBelowCritical(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL or not record.name.startswith(_LOGGERS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what this thread prints, and what the export libraries log and warn about, for the duration.

    What matters of it is reported elsewhere: failures as exceptions, frozen control flow by tracing.py, and everything
    else by checking the exported file itself.
    """
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(_LOGGERS)]
    handlers = {handler for logger in (logging.root, *known) for handler in logger.handlers}
    handlers |= {logging.lastResort} if logging.lastResort else set()
    silence = _NothingBelowCritical()
    log_enabled = torch._C._jit_is_onnx_log_enabled()  # prints a failed graph from C++, past sys.stdout
    torch._C._jit_set_onnx_log_enabled(False)
    for handler in handlers:
        handler.addFilter(silence)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_ThisThreadOnly(sys.stdout)),
            contextlib.redirect_stderr(_ThisThreadOnly(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_set_onnx_log_enabled(log_enabled)
        for handler in handlers:
            handler.removeFilter(silence)


@contextlib.contextmanager
def no_deprecation_warnings() -> Iterator[None]:
    """Ignore that torch 2.13 deprecates TorchScript in favour of torch.export: Triton's backend reads nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield
