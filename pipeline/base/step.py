"""A piece of work as data: what is done, from what, and what comes of it; it can be run here or anywhere."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.base import closure, files, reads
from pipeline.base.values import Progress

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A piece of work: a function and all that its result depends on.

    Attributes:
        name: for people and logs: ``export[resnet_onnx]``.
        function: ``package.module:name`` of a ``Function``; whatever its module imports decides the result too.
        arguments: JSON values that decide the result.
        unkeyed: JSON values that do not: folders whose content is in ``inputs``, places in the YAML, limits of time.
        inputs: digests of the files read, by name.
        tools: installed distributions whose version decides the result.
        upstream: the steps whose outputs it reads, by role.
        cores: the least it needs; None for all of them, alone.
        memory_bytes: what it needs, besides room for copies of its upstream files.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    unkeyed: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    upstream: Mapping[str, Step] = field(default_factory=dict)
    cores: int | None = 1
    memory_bytes: int = GIB

    @property
    def key(self) -> str:
        """Hex digest that names the entry."""
        return files.digest_of(
            {
                "function": self.function,
                "code": closure.digest(self.module),
                "arguments": dict(self.arguments),
                "inputs": dict(self.inputs),
                "tools": {**tool_versions(self.tools), "python": platform.python_version()},
                "upstream": {role: step.key for role, step in self.upstream.items()},
            }
        )

    @property
    def module(self) -> str:
        """Full name of the function's module."""
        return self.function.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step's function gives back, besides the files it has written.

    Attributes:
        file: the model it made, in its folder; empty for a step that makes none.
        notes: what a person should know: a fallback taken, a warning, each one line.
        values: JSON values: facts about the file, or what was measured.
        reads: the state of each file that a user's code has read (base/reads.py), by its absolute path.
    """

    file: str = ""
    notes: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished step.

    Attributes:
        directory: holds the step's files; read only.
        outcome: what its function gave back.
        digest: digest of outcome and files.
        cached: False when the step was run just now.
        rebuilt: why an existing entry was not used, or empty.
    """

    directory: Path
    outcome: Outcome
    digest: str
    cached: bool
    rebuilt: str = ""

    @property
    def path(self) -> Path:
        """The model it made."""
        return self.directory / self.outcome.file

    @property
    def values(self) -> Mapping[str, Any]:
        """The outcome's."""
        return self.outcome.values

    @property
    def notes(self) -> tuple[str, ...]:
        """The outcome's."""
        return self.outcome.notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A step about to be run: everything its function is given. It can be pickled.

    Attributes:
        step: what is to be done.
        upstream: what its upstream steps made, by role.
        out_dir: existing folder that the function writes into.
        partial_dir: folder for unfinished work that a later attempt may take up; not made yet.
        log_path: where its output goes.
    """

    step: Step
    upstream: Mapping[str, Made]
    out_dir: Path
    partial_dir: Path
    log_path: Path

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The step's arguments, and what it is given besides."""
        return {**self.step.unkeyed, **self.step.arguments}


Function = Callable[[Task, Progress], Outcome]
"""What a step runs: it reads the task, writes into ``out_dir``, and keeps nothing for later."""


def call(task: Task, progress: Progress) -> Outcome:
    """Run a step's function in this process; a full disk is a MissingError."""
    function: Function = pkgutil.resolve_name(task.step.function)
    ours = (task.out_dir, task.partial_dir, task.log_path.parent, *(made.directory for made in task.upstream.values()))
    with files.disk_errors(task.out_dir, task.step.name), reads.of_step(ours) as read:
        outcome = function(task, progress)
        return replace(outcome, reads=read())


def tool_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions, read from metadata without importing them; ``absent`` when not installed."""
    return {name: _version(name) for name in sorted(names)}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
