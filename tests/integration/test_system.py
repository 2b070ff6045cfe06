"""ci/system: what the tests need of the system, named or installed. ci/java: what `make build` goes on without."""

from __future__ import annotations

import os
import shutil
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


def java(tools: Path, **environment: str) -> str:
    """What ci/java says, which never fails, where nothing but ``tools`` and the shell's own is there."""
    for name in ("bash", "sed"):
        (tools / name).symlink_to(str(shutil.which(name)))
    told = subprocess.run(
        [str(shutil.which("bash")), ROOT / "ci" / "java"], env={"PATH": str(tools), **environment}, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return told.stdout


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


def test_setup_names_a_java_that_is_missing(tools: Path) -> None:
    assert java(tools) == (
        "setup: no Java; TorchServe (`torchserve:` in a configuration) needs Java 17: "
        "apt-get install openjdk-17-jre-headless\n"
    )
    assert "\nci/java\n" in (ROOT / "ci" / "setup").read_text()


@pytest.mark.parametrize(
    ("line", "major"),
    [('java version "1.8.0_392"', "8"), ('openjdk version "11.0.21" 2023-10-17', "11"),
     ('openjdk version "17.0.1" 2021-10-19', ""), ('openjdk version "25" 2025-09-16', ""), ("no version", "")],
)  # fmt: skip
def test_setup_names_a_java_that_is_too_old(tools: Path, line: str, major: str) -> None:
    write(tools, "java", f"echo '{line}' >&2; echo 'OpenJDK Runtime Environment' >&2; exit 1")
    told = java(tools, JAVA_HOME="/nowhere")
    assert told.startswith(f"setup: {tools}/java is Java {major}; TorchServe") if major else told == ""


def test_setup_takes_the_java_that_a_person_names(tools: Path) -> None:
    (tools / "bin").mkdir()
    write(tools / "bin", "java", "echo 'java version \"1.8.0\"' >&2")
    assert java(tools, JAVA_HOME=str(tools)).startswith(f"setup: {tools}/bin/java is Java 8;")
