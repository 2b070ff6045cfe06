"""ci/system: what the tests need of the system, named or installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of stand-ins for dpkg-query, apt-get and id, which comes first on PATH."""
    write(tmp_path, "id", "echo 1000")
    write(tmp_path, "dpkg-query", '[ "${@: -1}" != g++ ] && printf installed')
    write(tmp_path, "apt-get", f'echo "$@" >> {tmp_path}/calls')
    return tmp_path


def write(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


def system(tools: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run([ROOT / "ci" / "system"], env=environment, capture_output=True, text=True, check=False)


def test_what_is_missing_is_named_with_the_command(tools: Path) -> None:
    done = system(tools)
    assert done.returncode == 3
    assert "apt-get install -y --no-install-recommends g++\n" in done.stderr
    assert not (tools / "calls").exists()


def test_root_gets_it_installed(tools: Path) -> None:
    write(tools, "id", "echo 0")
    done = system(tools)
    assert done.returncode == 0, done.stderr
    assert (tools / "calls").read_text().splitlines() == [
        "update -qq", "install -qq -y --no-install-recommends g++",
    ]  # fmt: skip


def test_a_whole_system_is_left_alone(tools: Path) -> None:
    write(tools, "dpkg-query", "printf installed")
    done = system(tools)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tools / "calls").exists()
