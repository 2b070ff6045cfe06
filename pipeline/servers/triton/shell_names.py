"""Names that a shell takes as they are, for what the embedded server starts.

Triton's Python backend (seen with 2.51) starts each stub by a line of ``bash -c`` that quotes nothing: a space in the
repository's path makes a model that never loads, and a ``;`` runs what follows it.
"""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base import files, model_config
from pipeline.base.errors import ConfigError
from pipeline.repository.versions import CONFIG
from pipeline.servers.triton.models import home

_PLACES = (tempfile.gettempdir(), "/tmp", "/dev/shm")  # noqa: S108 - a folder of our own is made in the first plain one


def is_plain(text: str | Path) -> bool:
    """Whether a shell takes a text as it is."""
    return shlex.quote(str(text)) == str(text)


@contextlib.contextmanager
def links(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The paths, absolute; in place of each that is not plain a link to it that is, until the block is left.

    Raises:
        MissingError: no folder can be made for the links.
    """
    found = [path.absolute() for path in paths]
    with contextlib.ExitStack() as stack:
        if not all(map(is_plain, found)):
            folder = stack.enter_context(folder_of_our_own())
            for index, path in enumerate(found):
                if not is_plain(path):
                    found[index] = folder / f"{index}"
                    found[index].symlink_to(path)
        yield found


@contextlib.contextmanager
def folder_of_our_own() -> Iterator[Path]:
    """A folder with a plain path that nobody else can write to, until the block is left.

    Raises:
        MissingError: it cannot be made.
    """
    place = next(Path(place) for place in _PLACES if is_plain(place))
    with files.disk_errors(place, "server: a folder for links to what it serves"):
        folder = tempfile.TemporaryDirectory(prefix="triton-", dir=place)
    with folder as name:
        yield Path(name)


def require(roots: Sequence[Path], models: Sequence[str]) -> None:
    """Refuse models whose own names would be read by the shell; what cannot be read is for the server to say.

    Raises:
        ConfigError: there is one.
    """
    for model in models:
        for what, name in (("its name", model), *_names(home(roots, model) / model / CONFIG)):
            if name and not is_plain(name):
                raise ConfigError(
                    f"server: model {model!r} cannot be served here",
                    found=f"{what} is {name!r}, which the embedded server would hand to a shell unquoted",
                    hint="expected letters, digits and any of @%+=:,./-_",
                )


def _names(path: Path) -> Iterator[tuple[str, str]]:
    try:
        config = model_config.parse_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError):
        return
    yield "default_model_filename", config.default_model_filename
    for group in config.instance_group:
        yield "the name of an instance_group", group.name
