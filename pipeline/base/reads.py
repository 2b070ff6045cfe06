"""Files that a user's code reads while a step runs: they decide its result as the code does.

They are seen by an audit hook (PEP 578), which is told of what Python's own ``open`` and ``os.open`` open; what a C or
Rust library opens by itself (``safetensors.safe_open``, ``torch.jit.load``, ``cv2.imread``) is not seen.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import files

_HASHED_BYTES = 64 << 20  # of a larger file, size and time of change are taken in place of its bytes
_LIBRARIES = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])}
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr")

_seen: set[str] | None = None
_recording = False
_installed = False


@contextlib.contextmanager
def of_step(ignored: Sequence[Path]) -> Iterator[Callable[[], dict[str, str]]]:
    """Collect, from the first ``start`` to the end of the block, what is read outside of ``ignored`` and of libraries.

    Yields:
        Gives the state of each file read so far that is still there, by its absolute path.
    """
    global _seen, _recording
    _seen, _recording = set(), False
    places: tuple[Path | str, ...] = (*ignored, *_LIBRARIES, *_SYSTEM)
    outside = tuple(f"{Path(place).absolute()}{os.sep}" for place in places)

    def found() -> dict[str, str]:
        seen = tuple(_seen or ())  # a user's threads may still be reading
        names = sorted(name for name in seen if not name.startswith(outside) and "__pycache__" not in name)
        return {name: state for name in names if (state := _state(name))}

    try:
        yield found
    finally:
        _seen, _recording = None, False


def start() -> None:
    """A user's code runs from now on; nothing outside of a step."""
    global _recording, _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_opened)
    _recording = _seen is not None


def changed(states: Mapping[str, str]) -> str:
    """The first of the files that is not as it was, or empty."""
    return next((name for name, state in states.items() if _state(name) != state), "")


def _opened(event: str, args: tuple[Any, ...]) -> None:
    if _recording and event == "open" and isinstance(args[0], str) and args[2] & os.O_ACCMODE != os.O_WRONLY:
        seen = _seen
        if seen is not None:
            seen.add(str(Path(args[0]).absolute()))


def _state(name: str) -> str:
    """Of a regular file that can be read; empty for anything else."""
    path = Path(name)
    try:
        if not path.is_file():
            return ""
        found = path.stat()
        if found.st_size > _HASHED_BYTES:
            return f"{found.st_size} bytes, changed {found.st_mtime_ns}"
        return files.sha256_file(path)
    except OSError:
        return ""
