"""What the watcher leaves on disk: the lines of ``watch.log``, and ``watch.json``, replaced whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import MissingError


@dataclass
class Journal:
    """Keeps what is told; a file that cannot be written is told once, and does not end anything.

    Attributes:
        directory: where both files are.
        tell: told each line.
    """

    directory: Path
    tell: Callable[[str], None]
    _lost: set[str] = field(default_factory=set)

    def say(self, text: str) -> None:
        """Tell a line, with the time before it, and add it to ``watch.log``."""
        line = f"{now()} {' '.join(text.split())}"
        try:
            with (self.directory / "watch.log").open("a") as log:
                log.write(line + "\n")
        except OSError as error:
            self._not_written("watch.log", error)
        self.tell(line)

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace ``watch.json``."""
        try:
            files.write_atomic(self.directory / "watch.json", json.dumps(status, indent=2) + "\n")
        except (OSError, MissingError) as error:
            self._not_written("watch.json", error.__cause__ or error)

    def _not_written(self, name: str, error: BaseException) -> None:
        if name not in self._lost:
            self._lost.add(name)
            self.tell(f"{now()} {name} cannot be written: {error}; watching goes on without it")


def now() -> str:
    """The time, as both files show it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
