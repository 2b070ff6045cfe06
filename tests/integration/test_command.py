"""Child processes: logged, bounded, and gone when asked to go."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from pipeline.base import command
from pipeline.base.errors import MissingError, StageError


def test_output_and_the_command_line_are_logged_and_the_environment_is_not(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    child = command.start([sys.executable, "-c", "print('hello')"], log_path=log, env={"TOKEN": "s3cret"})
    assert child.wait(timeout=20) == 0
    text = log.read_text()
    assert text.splitlines()[0].startswith("$ ")
    assert "hello" in text
    assert "s3cret" not in text


def test_a_missing_program_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="cannot run no-such-program"):
        command.start(["no-such-program"], log_path=tmp_path / "log")
    with pytest.raises(MissingError, match="cannot run no-such-program"):
        command.run(["no-such-program"], timeout_s=1)


def test_failure_and_slowness_are_told_apart() -> None:
    with pytest.raises(StageError, match="exited with 3") as caught:
        command.run([sys.executable, "-c", "import sys; sys.stderr.write('why'); sys.exit(3)"],
                    timeout_s=20)  # fmt: skip
    assert caught.value.found == "why"
    with pytest.raises(StageError, match="did not end within 1 s"):
        command.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=1)


def test_stop_ends_a_child_that_ignores_sigterm_and_its_children(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print('up', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    child = command.start([sys.executable, "-u", "-c", script], log_path=log)
    while "up" not in log.read_text().splitlines():
        assert child.poll() is None
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    assert command.stop(child, grace_s=0.3) == -9
    psutil.wait_procs(family[1:], timeout=10)
    assert not any(process.is_running() and process.status() != "zombie" for process in family[1:])
