"""The versions that ensembles name: which they are, and how their members keep them servable.

An ensemble names the versions of its members that it was proven with, so that a new version of a member changes no
answer of the ensemble until that moves too. As long as a standing ensemble names a version that a member's own
``version_policy`` would not serve any more, the member's configuration names that one as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.repository.versions import CONFIG, version_numbers


def standing(root: Path, *, without: Iterable[str] = ()) -> dict[str, set[int]]:
    """The versions that ensembles in a root name, by member; anybody's ensembles, but those ``without``."""
    found: dict[str, set[int]] = {}
    skipped = set(without)
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        message = None if folder.name in skipped else read_config(folder)
        for step in message.ensemble_scheduling.step if message is not None else ():
            if step.model_version > 0:
                found.setdefault(step.model_name, set()).add(step.model_version)
    return found


def read_config(model_dir: Path) -> Any | None:
    """The configuration of a model directory; None where there is none that can be read."""
    try:
        return model_config.parse_text((model_dir / CONFIG).read_text(encoding="utf-8"), str(model_dir / CONFIG))
    except (OSError, UnicodeDecodeError, ConfigError):
        return None


def serving(own: Mapping[str, bytes], numbers: Iterable[int], pinned: Iterable[int]) -> dict[str, bytes]:
    """A model's own files, where it has a config.pbtxt that ``widened``."""
    return {**own, CONFIG: widened(own[CONFIG], numbers, pinned)} if CONFIG in own else dict(own)


def widened(config: bytes, numbers: Iterable[int], pinned: Iterable[int]) -> bytes:
    """A config.pbtxt that serves what it says and every pinned version; as it is where that is so already.

    ``numbers`` are the version directories there will be.
    """
    present = set(numbers)
    wanted = set(pinned) & present
    if not wanted:
        return config
    message = model_config.parse_text(config.decode(), CONFIG)
    served = set(model_config.served_versions(message, present))
    if wanted <= served:
        return config
    message.version_policy.specific.versions[:] = sorted(served | wanted)
    return model_config.to_text(message).encode()


def named(config: bytes | None) -> tuple[int, ...]:
    """The versions that a config.pbtxt's own ``version_policy`` names one by one."""
    if config is None:
        return ()
    return tuple(model_config.parse_text(config.decode(), CONFIG).version_policy.specific.versions)


def pinned_now(root: Path, model_dir: Path) -> bytes | None:
    """An ensemble's config.pbtxt with every step naming the version it reaches now; None where all name one already.

    An ensemble that asks for the newest of a member (``model_version: -1``) would answer with two builds in the moment
    between the member's publication and its own.
    """
    message = read_config(model_dir)
    loose = [step for step in message.ensemble_scheduling.step if step.model_version <= 0] if message else []
    for step in loose:
        if reached := reached_version(root / step.model_name):
            step.model_version = reached
    return model_config.to_text(message).encode() if any(step.model_version > 0 for step in loose) else None


def reached_version(model_dir: Path) -> int | None:
    """The version that a request without one reaches: the newest of those which are served."""
    config = read_config(model_dir)
    served = [] if config is None else model_config.served_versions(config, version_numbers(model_dir))
    return served[-1] if served else None


def member_versions(root: Path, config: Any) -> Mapping[str, int]:
    """What an ensemble reaches, in the order of its steps: the version it names, else the newest one served."""
    found = {}
    for step in config.ensemble_scheduling.step:
        number = step.model_version if step.model_version > 0 else reached_version(root / step.model_name)
        if number:
            found[step.model_name] = number
    return found
