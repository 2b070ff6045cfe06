"""The files of ``--report``: looked at before a build, written after it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import ConfigError
from pipeline.report.summary import BuildReport


def check(path: Path | None) -> None:
    """Refuse what ``--report`` gives, if it does, and what could not be written after a long build.

    Raises:
        ConfigError: it is the page's own name, a folder, or in a folder that cannot be written or made.
    """
    if path is None:
        return
    for file in (path, _page(path)):
        if file.is_dir():
            raise _refused("a folder has that name", file)
    if _page(path) == path:
        raise _refused("the page is written as FILE.html beside the JSON, and would replace it", path)
    try:
        there = next(folder for folder in path.absolute().parents if folder.exists())  # the others are made later
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _refused(str(error), path.parent) from error


def write(path: Path | None, reports: Sequence[BuildReport]) -> None:
    """Write the report of the whole command; the page beside it is of one run, so several have theirs in their runs."""
    if path is None:
        return
    from pipeline.report import html

    records = [item.record for item in reports]
    rows = [record.model_dump(mode="json") for record in records]
    files.write_atomic(path, json.dumps(rows[0] if len(rows) == 1 else rows, indent=2) + "\n")
    if len(records) == 1:
        files.write_atomic(_page(path), html.page(records[0]))


def _page(path: Path) -> Path:
    return path.parent / f"{path.stem}.html"


def _refused(found: str, where: Path) -> ConfigError:
    return ConfigError(
        "--report: the report cannot be written there", found=found, where=str(where),
        hint="--report FILE.json, in a folder that can be written",
    )  # fmt: skip
