"""Cores and memory, in and out of a container that limits them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pipeline.machine import capacity


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1)])
def test_cores_are_those_allowed_within_the_containers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert capacity.cores(tmp_path) == 3
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert capacity.cores(tmp_path) == cores


def test_memory_is_what_the_container_has_left_and_files_in_memory_can_go(tmp_path: Path) -> None:
    assert capacity.free_memory_bytes(tmp_path) <= psutil.virtual_memory().total
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert capacity.free_memory_bytes(tmp_path) > 1000
    (tmp_path / "memory.max").write_text("1000\n")
    assert capacity.free_memory_bytes(tmp_path) == 100
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert capacity.free_memory_bytes(tmp_path) == 400
