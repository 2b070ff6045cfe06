"""What a user's code reads is seen, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.base import files, reads
from pipeline.base.step import Outcome
from pipeline.base.store import Store

from .test_store import step


def test_files_read_after_the_start_count_where_they_still_are(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    for name in ("before.txt", "text.txt", "low.bin", "gone.txt", "written.txt", "ours/state.bin"):
        (tmp_path / name).write_bytes(name.encode())
    np.savez(tmp_path / "arrays.npz", x=np.arange(3))
    with reads.of_step([ours]) as found:
        (tmp_path / "before.txt").read_text()
        reads.start()
        (tmp_path / "text.txt").read_text()
        np.load(tmp_path / "arrays.npz")["x"]
        os.close(os.open(tmp_path / "low.bin", os.O_RDONLY))
        (tmp_path / "gone.txt").read_text()
        (tmp_path / "gone.txt").unlink()
        (tmp_path / "written.txt").write_text("new")
        (ours / "state.bin").read_bytes()
        Path(np.__file__).read_text()  # a library's: its version is in the key
        Path("/proc/self/status").read_text()
        seen = found()
    assert seen == {
        str(tmp_path / name): files.sha256_file(tmp_path / name) for name in ("arrays.npz", "low.bin", "text.txt")
    }
    (tmp_path / "before.txt").read_text()
    with reads.of_step([]) as found:
        (tmp_path / "text.txt").read_text()
        assert found() == {}  # no user's code has run in this step


def test_a_change_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_text("old")
    with reads.of_step([]) as found:
        reads.start()
        path.read_text()
        states = found()
    assert reads.changed(states) == ""
    path.write_text("new")
    assert reads.changed(states) == str(path)
    path.unlink()
    assert reads.changed(states) == str(path)


def test_an_entry_does_not_hold_when_what_was_read_has_changed(tmp_path: Path) -> None:
    store, path, calls = Store(tmp_path / "store"), tmp_path / "weights.pt", []

    def produce(folder: Path) -> Outcome:
        calls.append(1)
        return Outcome(reads={str(path): files.sha256_file(path)})

    path.write_text("old")
    first = store.run(step(), produce)
    assert store.run(step(), produce).cached
    path.write_text("new")
    again = store.run(step(), produce)
    assert (again.cached, len(calls)) == (False, 2)
    assert again.rebuilt == f"{path}, which it read, has changed"
    assert again.digest == first.digest  # of what was made, wherever the file lay
