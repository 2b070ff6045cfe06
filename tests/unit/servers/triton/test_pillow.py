"""Pillow beside the preprocessing model: whole enough to read images, small, and honest about what is lacking."""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.base import files
from pipeline.base.errors import MissingError, StageError
from pipeline.servers.triton import pillow


def test_the_installed_one_is_copied_without_what_nobody_uses(tmp_path: Path) -> None:
    version = importlib.metadata.version("pillow")
    assert pillow.installed(tmp_path) == {"version": version}
    names = set(files.tree_digests(tmp_path / "files"))
    assert {"PIL/Image.py", "PIL/WebPImagePlugin.py", f"pillow-{version}.dist-info/licenses/LICENSE"} <= names
    assert any(name.startswith("PIL/_imaging.") for name in names)
    for word in ("__pycache__", "_imagingft.c", "_avif.c", "libavif", "libfreetype", "RECORD", ".pyi"):
        assert not [name for name in names if word in name], word
    assert files.size_bytes(tmp_path / "files") < 15e6


def test_one_that_came_from_no_wheel_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        files = None
        version = "1.0"

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Foreign())
    with pytest.raises(MissingError, match="no list of its files"):
        pillow.installed(tmp_path)


def download(write: Callable[[Path], None]) -> Callable[..., str]:
    """Stands in for pip: writes into its ``--dest``."""

    def run(argv: Sequence[str], *, timeout_s: float) -> str:
        download.argv = list(argv)  # type: ignore[attr-defined]
        (folder,) = (Path(word.removeprefix("--dest=")) for word in argv if word.startswith("--dest="))
        write(folder)
        return ""

    return run


def test_another_python_s_is_unpacked_from_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / "pillow-12.3.0-cp310-cp310-manylinux_2_28_x86_64.whl", "w") as wheel:
            for name in ("PIL/Image.py", "PIL/_avif.cpython-310.so", "PIL/../../outside.py", "elsewhere/x.py"):
                wheel.writestr(name, "x")

    monkeypatch.setattr(pillow.command, "run", download(write))
    assert pillow.fetched(tmp_path / "a" / "b", python="3.10", machine="x86_64") == {"version": "12.3.0"}
    assert set(files.tree_digests(tmp_path)) == {"a/b/files/PIL/Image.py", "a/b/files/PIL/outside.py"}
    words = download.argv  # type: ignore[attr-defined]
    assert {"--no-deps", "--only-binary=:all:", "--python-version=3.10", "--platform=manylinux_2_28_x86_64"} <= {*words}
    assert words[-1] == f"pillow<={importlib.metadata.version('pillow')}"


def test_what_pip_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: Sequence[str], *, timeout_s: float) -> str:
        raise StageError("pip exited with 1", found="WARNING: Retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(pillow.command, "run", refuse)
    with pytest.raises(MissingError) as caught:
        pillow.fetched(tmp_path, python="3.10", machine="x86_64")
    assert caught.value.found == "No matching distribution found"


def test_folders_are_named_as_the_model_looks_for_them() -> None:
    assert pillow.folder_name("3.10", "x86_64") == "cp310-x86_64"
