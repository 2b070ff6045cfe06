from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pipeline.base import files
from pipeline.base.errors import ConfigError, MissingError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.json"
    files.write_atomic(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingError, match="no space left on the disk") as caught:
        files.write_atomic(target, "new")
    assert caught.value.exit_code == 3
    assert "cache gc" in caught.value.hint
    assert target.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a" / "b", b"x")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o644


def test_a_tree_digest_depends_on_names_and_bytes_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "f").write_text("x")
    assert files.sha256_tree(tmp_path / "one") == files.sha256_tree(tmp_path / "two")
    (tmp_path / "two" / "sub" / "f").rename(tmp_path / "two" / "sub" / "g")
    assert files.sha256_tree(tmp_path / "one") != files.sha256_tree(tmp_path / "two")


@pytest.mark.parametrize("relative", ["../outside", "/etc/passwd", "link/x", "a/../../b"])
def test_paths_cannot_leave_their_root(tmp_path: Path, relative: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leaves its root"):
        files.inside(root, relative)
    assert files.inside(root, "a/b") == root / "a" / "b"


def test_a_second_holder_waits_and_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    told: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with files.locked(lock, 10, told.append):
            entered.set()

    with files.locked(lock, 1):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join()
    assert entered.is_set()
    assert told == [f"process {os.getpid()}"]


def test_a_lock_held_too_long_is_an_error_that_names_the_holder(tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / "lock", 1),
        pytest.raises(MissingError, match="another build holds the lock") as caught,
        files.locked(tmp_path / "lock", 0.2),
    ):
        pass
    assert str(os.getpid()) in caught.value.found
