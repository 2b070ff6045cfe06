"""Lint rules on the directory tree: strays in the root, links, and modes the server's user cannot read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from pipeline.lint.model import Findings, Model, Place, Rule, children, printable, shown, unreadable

# What the server's container runs as (Triton's secure deployment guide: user triton-server).
SERVER_UID = 1000
_MAX_DEPTH, _MAX_ENTRIES = 32, 100_000


def tree(model: Model) -> Findings:
    """Links that dangle or leave the repository, and files the server's user may not read."""
    seen, pending = 0, [(model.path, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            items = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as problem:
            yield unreadable(model.root, folder, problem)
            continue
        seen += len(items)
        if depth > _MAX_DEPTH or seen > _MAX_ENTRIES:
            reason = (
                f"the model has over {_MAX_ENTRIES} files or is nested over {_MAX_DEPTH} deep; the rest is unchecked, "
                "and Triton reads the times of all of it at each poll."
            )
            fix = "keep only what the backend needs in the model directory"
            yield model.at(folder).warning("tree-too-large", reason, fix)
            return
        for item in items:
            if item.is_symlink():
                yield from link(model.root, Path(item.path))
            yield from _mode(model, item)
            if item.is_dir(follow_symlinks=False):
                pending.append((Path(item.path), depth + 1))


def link(root: Path, path: Path) -> Findings:
    """A link that leads nowhere, or out of the repository."""
    here, target = Place(shown(root, path)), os.path.realpath(path)
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on a loop of links
        scope = "the model" if "/" in here.path else "the whole repository"
        reason = f"the link leads to nothing, and {scope} fails to load."
        yield here.error("dangling-link", reason, "remove the link, or restore what it points to")
    elif not Path(target).is_relative_to(os.path.realpath(root)):
        yield here.warning(
            "link-leaves-repository",
            f"the link leads out of the repository, to {printable(target)}, which a container or a copy will not have.",
            "copy the files into the repository",
        )


def _mode(model: Model, item: os.DirEntry[str]) -> Findings:
    try:
        found = item.stat()
    except OSError:
        return  # a dangling link, reported as such
    if not readable_by(found, SERVER_UID):
        reason = f"its mode {stat.S_IMODE(found.st_mode):o} keeps the server's user (uid {SERVER_UID}) from reading it."
        fix = f"chmod {'a+rx' if stat.S_ISDIR(found.st_mode) else 'a+r'} it"
        yield model.at(Path(item.path)).warning("file-mode", reason, fix)


def readable_by(found: os.stat_result, uid: int) -> bool:
    """Whether a user, whose group has the same number, may read a file or enter and list a directory."""
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == uid else 0
    needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    return (stat.S_IMODE(found.st_mode) >> shift) & needed == needed


def stray(model: Model) -> Findings:
    """A directory in the root that is no model: Triton takes every one for a model, hidden ones too."""
    name = model.name
    hidden = name.startswith(".") or name in ("lost+found", "__pycache__")
    empty = not children(model.path)
    if hidden or empty:
        what = "an empty directory" if empty and not hidden else "not a model"
        reason = (
            f"Triton takes every directory of the repository root for a model; this is {what}, and the "
            "server stops on it."
        )
        yield model.at(model.path).error("stray-directory", reason, "move it out of the repository root, or remove it")
    elif not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        reason = "the model's name has characters that every client must percent-encode in URLs."
        fix = "use letters, digits, '_', '-' and '.' only"
        yield model.at(model.path).warning("model-name-characters", reason, fix)


TREE_RULES: tuple[Rule, ...] = (stray, tree)
