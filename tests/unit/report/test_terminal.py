from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.base.errors import StageError
from pipeline.report import terminal as showing
from pipeline.report.log import StageLog
from pipeline.report.terminal import Terminal


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def terminal(stream: io.StringIO) -> Terminal:
    return Terminal(Console(file=stream, width=200))


def test_a_stage_ends_in_one_line(terminal: Terminal, stream: io.StringIO) -> None:
    with terminal.stage("export[m_onnx]") as stage:
        stage.progress("tracing", 0.5)
        stage.result = "45.0 MB"
    (line,) = stream.getvalue().splitlines()
    assert "✓ export[m_onnx]" in line
    assert line.endswith("45.0 MB")


def test_a_cached_stage_says_so(terminal: Terminal, stream: io.StringIO) -> None:
    with terminal.stage("export[m_onnx]") as stage:
        stage.cached = True
    assert "cached" in stream.getvalue()


def test_a_failed_stage_says_so_and_passes_the_error_on(terminal: Terminal, stream: io.StringIO) -> None:
    with pytest.raises(StageError), terminal.stage("export[m_onnx]"):
        raise StageError("no")
    assert "✗ export[m_onnx]" in stream.getvalue()


def test_long_work_without_a_terminal_prints_plain_lines(
    terminal: Terminal, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(showing, "_PLAIN_INTERVAL_S", 0.0)
    with terminal.stage("source[m]") as stage:
        stage.progress("epoch 2 of 5", 0.4)
    assert "40% epoch 2 of 5" in stream.getvalue()


def test_the_log_keeps_warnings_records_and_tracebacks(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "m_onnx.log"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(StageError), StageLog(path, "export[m_onnx]"):  # noqa: PT012
            warnings.warn("frozen", UserWarning, stacklevel=1)
            logging.getLogger("torch.onnx").warning("fallback")
            raise StageError("export[m_onnx]: no")
    text = path.read_text()
    for part in (
        "export[m_onnx]: start",
        "UserWarning: frozen",
        "WARNING torch.onnx: fallback",
        "Traceback",
        "failed after",
    ):
        assert part in text
