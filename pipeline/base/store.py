"""Content-addressed step store: the same step over the same inputs is run once.

A step's key is the digest of its code, arguments, input files, tool versions and the keys of the steps it builds on,
so every key of a build is known before anything runs. An entry also records the digests of the upstream outputs it was
made from, and the files that a user's code has read for it: where an upstream step had to be run again and gave other
bytes, or such a file is another one now, the entry does not hold.

Layout below the root::

    entries/<key>/          files the step wrote, and entry.json (the outcome and the digest of every file)
    partial/<key>/          what a resumable step keeps between attempts
    tmp/                    entries being written; renamed into place when whole
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.base import files, reads
from pipeline.base.step import Made, Outcome, Step

TIMING_CACHES = "timing_caches"  # TensorRT's, one per version and GPU; they make builds faster, not different
_ENTRY = "entry.json"
_LOCK_TIMEOUT_S = 6 * 3600.0


class Store:
    """The step store below ``root``; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries = root / "entries"

    def holds(self, step: Step) -> bool:
        """Whether an entry for ``step`` exists; cheap, verifies nothing (for ``plan``)."""
        return (self._entries / step.key / _ENTRY).is_file()

    def partial(self, step: Step) -> Path:
        """Folder a resumable step may keep unfinished work in; removed when the step succeeds."""
        return self.root / "partial" / step.key

    def run(self, step: Step, produce: Callable[[Path], Outcome], upstream: Mapping[str, Made] | None = None) -> Made:
        """Return the verified result of ``step``, calling ``produce`` only when there is none.

        Args:
            step: what is to be done.
            produce: writes files below the folder it is given.
            upstream: what the steps of ``step.upstream`` made, by the same roles.
        """
        made_from = {role: made.digest for role, made in (upstream or {}).items()}
        with files.locked(self.root / "locks" / step.key, _LOCK_TIMEOUT_S):
            found, reason = self._read(step.key, made_from)
            if found:
                return found
            return self._produce(step, produce, made_from, reason)

    def _read(self, key: str, made_from: Mapping[str, str]) -> tuple[Made | None, str]:
        directory = self._entries / key
        if not directory.exists():
            return None, ""
        try:
            record = json.loads((directory / _ENTRY).read_text())
            expected, values = record["files"], record["outcome"]
            outcome = _outcome(values)
            actual = {name: digest for name, digest in files.tree_digests(directory).items() if name != _ENTRY}
            if record["sha256"] != files.digest_of({"files": expected, "outcome": values}):
                return None, "its record was altered"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"its record cannot be read ({type(error).__name__})"
        if wrong := sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)):
            return None, f"{', '.join(wrong[:3])} does not match its digest"
        if record["made_from"] != made_from:
            return None, "an earlier step gave other bytes"
        if changed := reads.changed(record["reads"]):
            return None, f"{changed}, which it read, has changed"
        os.utime(directory / _ENTRY)  # last use, for gc
        return Made(directory=directory, outcome=outcome, digest=record["sha256"], cached=True), ""

    def _produce(
        self, step: Step, produce: Callable[[Path], Outcome], made_from: Mapping[str, str], reason: str
    ) -> Made:
        final = self._entries / step.key
        staged = self.root / "tmp" / f"{step.key[:16]}.{uuid4().hex}"
        with files.disk_errors(staged, step.name):
            staged.mkdir(parents=True)
            try:
                values = json.loads(files.canonical_json(asdict(produce(staged))))
                read = values.pop("reads")  # not in the digest: the same files may lie elsewhere
                content = {"files": files.tree_digests(staged), "outcome": values}
                digest = files.digest_of(content)
                record = {"step": step.name, "sha256": digest, "made_from": dict(made_from), "reads": read, **content}
                (staged / _ENTRY).write_text(files.canonical_json(record))
                files.fsync_tree(staged)
                files.remove_tree(final)
                final.parent.mkdir(parents=True, exist_ok=True)
                staged.rename(final)
                files.fsync_directory(final.parent)
            except BaseException:
                files.remove_tree(staged)
                raise
            files.remove_tree(self.partial(step))
        return Made(directory=final, outcome=_outcome(values), digest=digest, cached=False, rebuilt=reason)

    def entries(self) -> list[dict[str, Any]]:
        """Every entry: ``key``, ``step``, ``size_bytes``, ``last_used`` (seconds since the epoch), newest first."""
        rows = []
        for directory in self._entries.iterdir() if self._entries.is_dir() else ():
            record = directory / _ENTRY
            try:
                name, used = json.loads(record.read_text())["step"], record.stat().st_mtime
            except (OSError, ValueError, KeyError):
                name, used = "(unreadable)", 0.0
            rows.append(
                {"key": directory.name, "step": name, "size_bytes": files.size_bytes(directory), "last_used": used}
            )
        return sorted(rows, key=lambda row: -row["last_used"])

    def collect(self, *, unused_days: float) -> tuple[int, int]:
        """Delete entries, and what the dead left, that nobody used for so long; how many, and the bytes freed."""
        limit = time.time() - unused_days * 86400
        stale = [self._entries / row["key"] for row in self.entries() if row["last_used"] <= limit]
        for folder in ("tmp", "partial"):
            children = (self.root / folder).iterdir() if (self.root / folder).is_dir() else ()
            stale += [item for item in children if item.stat().st_mtime <= limit]
        freed = sum(files.size_bytes(item) for item in stale)
        for item in stale:
            with files.disk_errors(item, "cache gc"):
                files.remove_tree(item)
        return len(stale), freed

    def clear(self) -> int:
        """Delete everything in the store; return the bytes freed."""
        freed = files.size_bytes(self.root) if self.root.exists() else 0
        with files.disk_errors(self.root, "cache clear"):
            for folder in ("entries", "partial", "tmp", "locks", TIMING_CACHES):
                files.remove_tree(self.root / folder)
        return freed


def _outcome(values: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**values, "notes": tuple(values["notes"])})
