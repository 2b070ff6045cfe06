"""Lint rules on the directory tree: strays in the root, links, and modes the server's user cannot read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline.lint.model import Finding, Model, Rule, children, error, printable, unreadable, warning

# What the server's container runs as (Triton's secure deployment guide: user triton-server).
SERVER_UID = 1000
_MAX_DEPTH, _MAX_ENTRIES = 32, 100_000


def tree(model: Model) -> Iterator[Finding]:
    """Links that dangle or leave the repository, and files the server's user may not read."""
    root = os.path.realpath(model.root)
    seen = 0
    pending = [(model.path, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            items = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as problem:
            yield unreadable(model.root, folder, problem)
            continue
        seen += len(items)
        if depth > _MAX_DEPTH or seen > _MAX_ENTRIES:
            yield warning(
                model.where(folder),
                "tree-too-large",
                f"the model has over {_MAX_ENTRIES} files or is nested over {_MAX_DEPTH} deep; the rest "
                "is unchecked, and "
                "Triton reads the times of all of it at each poll.",
                "keep only what the backend needs in the model directory",
            )
            return
        for item in items:
            if item.is_symlink():
                yield from _link(model, Path(item.path), root)
            yield from _mode(model, item)
            if item.is_dir(follow_symlinks=False):
                pending.append((Path(item.path), depth + 1))


def _link(model: Model, path: Path, root: str) -> Iterator[Finding]:
    target = os.path.realpath(path)
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on a loop of links
        yield dangling(model.root, model.where(path))
    elif Path(target) != Path(root) and not Path(target).is_relative_to(root):
        yield leaving(model.where(path), target)


def dangling(root: Path, at: str) -> Finding:
    """The finding for a link that leads nowhere."""
    scope = "the model" if "/" in at else "the whole repository"
    return error(
        at,
        "dangling-link",
        f"the link leads to nothing, and {scope} fails to load.",
        "remove the link, or restore what it points to",
    )


def leaving(at: str, target: str) -> Finding:
    """The finding for a link out of the repository."""
    return warning(
        at,
        "link-leaves-repository",
        f"the link leads out of the repository, to {printable(target)}, which a container or a copy will not have.",
        "copy the files into the repository",
    )


def _mode(model: Model, item: os.DirEntry[str]) -> Iterator[Finding]:
    try:
        found = item.stat()
    except OSError:
        return  # a dangling link, reported as such
    if not readable_by(found, SERVER_UID):
        yield warning(
            model.where(Path(item.path)),
            "file-mode",
            f"its mode {stat.S_IMODE(found.st_mode):o} keeps the server's user (uid {SERVER_UID}) from reading it.",
            f"chmod {'a+rx' if stat.S_ISDIR(found.st_mode) else 'a+r'} it",
        )


def readable_by(found: os.stat_result, uid: int) -> bool:
    """Whether a user, whose group has the same number, may read a file or enter and list a directory."""
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == uid else 0
    needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    return (stat.S_IMODE(found.st_mode) >> shift) & needed == needed


def stray(model: Model) -> Iterator[Finding]:
    """A directory in the root that is no model: Triton takes every one for a model, hidden ones too."""
    name = model.name
    hidden = name.startswith(".") or name in ("lost+found", "__pycache__")
    empty = not children(model.path)
    if hidden or empty:
        what = "an empty directory" if empty and not hidden else "not a model"
        yield error(
            model.where(model.path),
            "stray-directory",
            f"Triton takes every directory of the repository root for a model; this is {what}, and the "
            "server stops on it.",
            "move it out of the repository root, or remove it",
        )
    elif not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        yield warning(
            model.where(model.path),
            "model-name-characters",
            "the model's name has characters that every client must percent-encode in URLs.",
            "use letters, digits, '_', '-' and '.' only",
        )


TREE_RULES: tuple[Rule, ...] = (stray, tree)
