from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from rich.markup import render

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


def test_a_live_row_goes_to_the_terminal_whatever_takes_the_place_of_standard_output(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporters and users' code replace sys.stdout; a display that looked it up again would write into theirs."""
    monkeypatch.setattr(sys, "stdout", stream)
    terminal = Terminal(Console(force_terminal=True, width=80))
    theirs = io.StringIO()
    with terminal.stage("export[m_onnx]") as stage, contextlib.redirect_stdout(theirs):
        stage.progress("tracing", 0.5)
        print("exporter")
        time.sleep(0.3)  # the display draws ten times a second
        terminal.line("another")
    assert theirs.getvalue() == "exporter\n"
    for part in ("tracing", "another", "✓"):
        assert part in stream.getvalue()


def test_a_long_result_goes_on_below_itself_at_a_terminal_only(stream: io.StringIO) -> None:
    result = "max abs 9.5e-07 · accuracy 92.71% on 610 held-out samples"
    for live in (True, False):
        terminal = Terminal(Console(file=stream, width=80, force_terminal=live, color_system=None))
        terminal._ended("✓", showing.Stage(terminal, "parity[m_onnx]"), result)
    first, second, whole = stream.getvalue().splitlines()
    assert (len(first) <= 80, first.index("max"), len(second) - len(second.lstrip())) == (True, 43, 43)
    assert whole.endswith(result)


def test_several_stages_at_a_time_have_a_row_each_while_they_run(stream: io.StringIO) -> None:
    terminal = Terminal(Console(file=stream, width=200, force_terminal=True))
    with terminal.stage("export[m_onnx]") as first:
        with terminal.stage("export[m_ts]", waits=True) as second:
            assert (first.row is None, second.row is None) == (False, True)  # it waits for its turn
            second.begin()
            second.progress("tracing", 0.5)
            live = terminal._live
            assert live is not None
            assert [render(task.fields["stage"]).plain.strip() for task in live.tasks] == [
                "export[m_onnx]",
                "export[m_ts]",
            ]
            assert live.tasks[1].completed == 0.5
        first.progress("still there")
        assert terminal._live is live
    assert terminal._live is None
    lines = [line for line in stream.getvalue().splitlines() if "✓" in line]
    assert ["export[m_ts]" in lines[0], "export[m_onnx]" in lines[1]] == [True, True]


def test_a_stage_is_timed_from_when_its_turn_came(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(showing.time, "monotonic", lambda: now)
    with terminal.stage("export[m_onnx]", waits=True) as stage:
        now = 130.0
        stage.begin()
        now = 131.0
    assert stage.started == 130.0


def test_what_another_process_does_is_not_captured_here(tmp_path: Path) -> None:
    shown = warnings.showwarning
    with pytest.raises(StageError), StageLog(tmp_path / "m.log", "export[m]", capture=False):  # noqa: PT012
        assert warnings.showwarning is shown
        raise StageError("export[m]: no")
    start, end = (tmp_path / "m.log").read_text().splitlines()  # the traceback is the other's to write
    assert start.endswith("export[m]: start")
    assert "failed after" in end


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
