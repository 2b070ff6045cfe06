"""A build's steps in processes of their own: what happens to the others, and to the build, when one ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.base import files
from tests.integration.conftest import ROOT, run

USER = """
import os, time
from pathlib import Path
import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        if (HERE / "wait").exists() and torch.jit.is_tracing():
            (HERE / f"traced.{os.getpid()}").touch()
            while (HERE / "wait").exists():
                time.sleep(0.02)
        if self.training and (HERE / "epochs").exists():
            with (HERE / "epochs").open("a") as epochs:
                epochs.write(f"{os.getpid()}\\n")
            time.sleep(0.05)
        return self.linear(x)

def data():
    random = np.random.default_rng(0)
    x, targets = random.normal(size=(100, 4)).astype(np.float32), np.arange(100) % 3
    x[np.arange(100), targets] += 4
    return {"train": ({"x": x[:60]}, targets[:60]), "test": ({"x": x[60:]}, targets[60:])}
"""
YAML = """
name: m
source: {train: {model: {callable: "user.py:Net"}, data: {callable: "user.py:data"}, epochs: 8, batch_size: 20}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 3]}}
samples: {count: 8}
variants:
  one: {format: torchscript, method: trace}
  two: {format: torchscript, method: auto}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "m.yaml").write_text(YAML)
    return tmp_path / "m.yaml"


@pytest.fixture
def started(config: Path) -> Iterator[subprocess.Popen[str]]:
    """A build of the configuration, in a session of its own, as from a terminal."""
    folder = config.parent
    arguments = ["--no-serve", "--repository", str(folder / "repository"), "--work-dir", str(folder / "work")]
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "build", str(config), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    yield child
    child.kill()
    child.wait()


def until(found: object, timeout_s: float = 120.0) -> list[Path]:
    """The files that ``found`` gives, once there are some."""
    deadline = time.monotonic() + timeout_s
    while not (files_found := found()) and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)
    assert files_found
    return list(files_found)


def tracing(folder: Path, count: int) -> list[int]:
    """Process numbers of the workers that wait in the middle of their step, once there are so many."""

    def found() -> list[Path]:
        paths = list(folder.glob("traced.*"))
        return paths if len(paths) >= count else []

    return [int(path.suffix[1:]) for path in until(found)]


def gone(pids: list[int]) -> bool:
    """Whether processes have ended, a little later."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_worker_fails_its_row_and_the_others_go_on(config: Path, started: subprocess.Popen[str]) -> None:
    """Two exports are in the middle of their work at once, which shows that they run side by side."""
    folder = config.parent
    (folder / "wait").touch()
    victim, *_ = tracing(folder, 2)
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.5)
    (folder / "wait").unlink()
    output, _ = started.communicate(timeout=120)
    assert started.returncode == 4, output
    (failed,) = re.findall(r"export\[m_(one|two)\]: its process died", output)
    assert "exit status -9" in output
    assert re.search(rf"log:\s+\S+/m_{failed}\.log", output)
    assert f"--variant {failed}" in output
    other = {"one": "two", "two": "one"}[failed]
    assert (folder / "repository" / f"m_{other}" / "1" / "model.pt").is_file()
    assert not (folder / "repository" / f"m_{failed}").exists()
    again = run(config, folder, ["--no-serve"])
    assert again.exit_code == 0, again.output
    assert again.variant(f"m_{other}")["cached"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_build_takes_its_workers_along(config: Path, started: subprocess.Popen[str], how: int) -> None:
    folder = config.parent
    (folder / "wait").touch()
    workers = tracing(folder, 2)
    others = [child.pid for child in psutil.Process(started.pid).children(recursive=True)]
    os.killpg(started.pid, how) if how == signal.SIGINT else os.kill(started.pid, how)
    output, _ = started.communicate(timeout=30)
    assert started.returncode != 0
    assert "Traceback" not in output
    assert gone([*workers, *others])
    if how == signal.SIGINT:
        assert not list((folder / "work" / "store" / "tmp").iterdir())
    (folder / "wait").unlink()
    again = run(config, folder, ["--no-serve"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("victim", ["the worker", "the build", "Ctrl-C"])
def test_a_training_that_was_ended_is_taken_up_where_it_was(
    config: Path, started: subprocess.Popen[str], victim: str
) -> None:
    folder = config.parent
    (folder / "epochs").touch()
    kept = until(lambda: list((folder / "work" / "store" / "partial").glob("*/training.pt")))
    assert kept
    worker = int((folder / "epochs").read_text().split()[-1])
    if victim == "Ctrl-C":
        os.killpg(started.pid, signal.SIGINT)
    else:
        os.kill(worker if victim == "the worker" else started.pid, signal.SIGKILL)
    output, _ = started.communicate(timeout=60)
    assert gone([worker])
    if victim == "the worker":
        assert started.returncode == 4
        assert "source[m]: its process died" in output
    (folder / "epochs").unlink()
    resumed = run(config, folder, ["--no-serve"])
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after epoch" in resumed.output
    whole = run(config, folder / "whole", ["--no-serve"])
    ours, theirs = (files.tree_digests(folder / part / "repository") for part in ("", "whole"))
    assert whole.exit_code == 0
    assert ours == theirs


def test_a_build_of_what_is_there_starts_no_process(config: Path) -> None:
    folder = config.parent
    first = run(config, folder, ["--no-serve"])
    assert first.exit_code == 0, first.output
    script = (
        "import sys; from pipeline.__main__ import main; from multiprocessing import forkserver;"
        "sys.argv = ['pipeline', *sys.argv[1:]]; code = main();"
        "sys.exit(code or forkserver._forkserver._forkserver_pid and 'started a server of workers')"
    )
    arguments = ["--no-serve", "--repository", str(folder / "repository"), "--work-dir", str(folder / "work")]
    argv = [sys.executable, "-c", script, "build", str(config), *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("cached") >= 6
