from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.servers.triton.proof import measured


@dataclass
class Process:
    words: list[str]
    rss: int = 0

    def cmdline(self) -> list[str]:
        if not self.words:
            raise psutil.AccessDenied
        return self.words

    def memory_info(self) -> Process:
        return self


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    children: list[Process] = []

    class Server:
        def __init__(self, pid: int) -> None:
            if pid != 7:
                raise psutil.NoSuchProcess(pid)

        def children(self, *, recursive: bool) -> Sequence[Process]:
            return children

    monkeypatch.setattr(psutil, "Process", Server)
    return children


def test_the_memory_of_a_model_is_that_of_all_its_processes_and_of_no_other_s(stubs: list[Process]) -> None:
    stubs += [
        Process(["stub", "/repo/m_onnx/2/model.onnx", "m_onnx_0_0"], 70),
        Process(["stub", "/repo/m_onnx/2/model.onnx", "m_onnx_0_1"], 71),
        Process(["stub", "/repo/m_onnx/21/model.onnx"], 1000),
        Process(["stub", "/repo/m_onnx_int8/2/model.onnx"], 2000),
        Process([], 4000),
    ]
    assert measured.resident_bytes(7, Path("/repo/m_onnx/2")) == 141


def test_a_model_without_processes_of_its_own_has_no_figure(stubs: list[Process]) -> None:
    assert measured.resident_bytes(7, Path("/repo/m_onnx/2")) is None
    assert measured.resident_bytes(8, Path("/repo/m_onnx/2")) is None
