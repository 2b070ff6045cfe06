"""Compiling a program's folder: what is said when that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base import command
from pipeline.base.errors import StageError
from pipeline.machine.environment import Cpp
from pipeline.servers.libtorch import proving

HERE = Cpp(cmake=Path("/c/cmake"), compiler=Path("/c/c++"), libtorch=Path("/t/cmake"))


class Child:
    """A child process that has ended."""

    def __init__(self, status: int) -> None:
        self._status = status

    def wait(self, timeout: float) -> int:
        return self._status


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def start(argv: list[str], *, log_path: Path) -> Child:
        calls.append(list(argv))
        with log_path.open("a") as log:
            log.write("error: 'at' has no member\n" if "--build" in argv else "configured\n")
        return Child(2 if "--build" in argv else 0)

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(command, "stop", lambda child, grace_s: 0)
    return calls


def test_a_program_that_does_not_compile_shows_the_compilers_words(tmp_path: Path, started: list[list[str]]) -> None:
    with pytest.raises(StageError, match="does not compile") as caught:
        proving.compile_folder(tmp_path / "1", tmp_path / "build", proving.paths(HERE), log_path=tmp_path / "x.log")
    assert "has no member" in caught.value.found
    assert caught.value.log == str(tmp_path / "x.log")
    configure, build = started
    assert configure[:5] == ["/c/cmake", "-S", str(tmp_path / "1"), "-B", str(tmp_path / "build")]
    assert configure[5:] == ["-DCMAKE_PREFIX_PATH=/t/cmake", "-DCMAKE_CXX_COMPILER=/c/c++"]
    assert build[:3] == ["/c/cmake", "--build", str(tmp_path / "build")]
