"""Death at any moment of a publication."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.repository import swap
from pipeline.repository.versions import state_dir
from tests.unit.repository.bench import Bench


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_dying_at_any_moment_leaves_the_old_or_the_new_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """Dies at the 1st, 2nd, … file-system call of a publication until one goes through, checking after each."""
    if not exchange:
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    bench.publish(bench.version("one", "max_batch_size: 1\n"))
    old = bench.tree
    new = {"m_onnx/1/model.onnx": "one", "m_onnx/2/model.onnx": "two", "m_onnx/config.pbtxt": "max_batch_size: 2\n"}
    backup = bench.folder / "backup"
    shutil.copytree(bench.root, backup / "repo")
    shutil.copytree(state_dir(bench.root), backup / "state")
    for moment in range(1, 400):
        for folder, copy in ((bench.root, "repo"), (state_dir(bench.root), "state")):
            shutil.rmtree(folder)
            shutil.copytree(backup / copy, folder)
        died = _die_at(monkeypatch, moment, lambda: bench.publish(bench.version("two", "max_batch_size: 2\n")))
        if exchange:  # one atomic step: never anything else, even before the next build recovers
            assert bench.tree in (old, new)
        bench.publish(bench.version("two", "max_batch_size: 2\n"))
        assert bench.tree == new
        if not died:
            break
    assert moment > 10


class _Died(BaseException):
    """Stands for SIGKILL: nothing handles it; clean-up code that runs is undone by the next call dying too."""


def _die_at(monkeypatch: pytest.MonkeyPatch, moment: int, action: Any) -> bool:
    calls = 0

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= moment:
                raise _Died
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (os, "fsync"),
            (os, "link"),
            (os, "replace"),
            (Path, "rename"),
            (Path, "mkdir"),
            (Path, "unlink"),
            (Path, "write_bytes"),
            (shutil, "copyfile"),
            (shutil, "rmtree"),
        ):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        if (exchange := swap._exchange) is not None:
            patch.setattr(swap, "_exchange", dying(exchange))
        try:
            action()
        except _Died:
            return True
    return False
