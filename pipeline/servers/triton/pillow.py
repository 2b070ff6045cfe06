"""Pillow for whoever runs the preprocessing model: ``files``, a folder to put on ``sys.path``, for one Python.

Triton's container has numpy and, as far as is known, no Pillow; and what reads images must not depend on what someone
installed beside the server.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.base import command
from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress

_FOLDERS = ("PIL", "pillow.libs")
_LICENCE = ".dist-info/licenses"
# fonts, colour management, Tk and AVIF: 9 MB that nothing here uses; Pillow imports each of them only when asked
_LEFT_OUT = (
    "_imagingft.", "libfreetype-", "libharfbuzz-", "_imagingcms.", "liblcms2-", "_imagingtk.", "_avif.", "libavif-",
)  # fmt: skip
_DOWNLOAD_TIMEOUT_S = 180.0


def folder_name(python: str, machine: str) -> str:
    """``cp310-x86_64`` for Python ``3.10``: as preprocess/model.py looks for it."""
    return f"cp{python.replace('.', '')}-{machine}"


def make(task: Task, progress: Progress) -> Outcome:
    """The step; arguments ``python``, ``machine``, and ``here``: it is this interpreter's; gives its ``version``."""
    given = task.arguments
    python, here = given["python"], given["here"]
    values = installed(task.out_dir) if here else fetched(task.out_dir, python=python, machine=given["machine"])
    return Outcome(notes=(f"Pillow {values['version']} for Python {python}",), values=values)


def installed(folder: Path) -> Mapping[str, Any]:
    """Copy this interpreter's Pillow to ``folder/files``; needs no network.

    Returns:
        ``version``: of Pillow.

    Raises:
        MissingError: it was not installed from a wheel, so that its files are not known.
    """
    distribution = importlib.metadata.distribution("pillow")
    wanted = [file for file in distribution.files or () if _wanted(PurePosixPath(file))]
    if not wanted:
        raise MissingError("pillow: the installed one has no list of its files", found="not installed from a wheel")
    for file in wanted:
        target = folder / "files" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(distribution.locate_file(file)), target)
    return {"version": distribution.version}


def fetched(folder: Path, *, python: str, machine: str) -> Mapping[str, Any]:
    """Unpack the wheel for another Python to ``folder/files``: the installed version, or the newest before it.

    Args:
        folder: where to.
        python: ``3.10``.
        machine: as ``platform.machine()`` has it.

    Returns:
        ``version``: of Pillow.

    Raises:
        MissingError: no package index answers, or it has no such wheel.
    """
    newest = importlib.metadata.version("pillow")
    # glibc 2.28 and older: what the containers of every release since 24.01 (Ubuntu 22.04, glibc 2.35) have
    platforms = [f"--platform={tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    with tempfile.TemporaryDirectory() as downloads:
        argv = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", "--retries=1", "--timeout=15", f"--dest={downloads}", "--implementation=cp",
            f"--python-version={python}", *platforms, f"pillow<={newest}",
        ]  # fmt: skip
        try:
            command.run(argv, timeout_s=_DOWNLOAD_TIMEOUT_S)
        except StageError as error:
            raise MissingError(f"pillow: no wheel for Python {python} was fetched", found=_last_line(error)) from error
        (wheel,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if _wanted(PurePosixPath(name)):
                    archive.extract(name, folder / "files")  # leaves out `..` and leading slashes
    return {"version": wheel.name.split("-")[1]}


def _last_line(error: StageError) -> str:
    lines = error.found.strip().splitlines() or [error.what]
    return lines[-1].removeprefix("ERROR: ")


def _wanted(file: PurePosixPath) -> bool:
    inside = file.parts[0] in _FOLDERS or _LICENCE in str(file.parent)
    compiled = "__pycache__" in file.parts or file.suffix == ".pyi"
    return inside and not compiled and not file.name.startswith(_LEFT_OUT)
