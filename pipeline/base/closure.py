"""The source files that importing one file may run, read from their syntax trees; none of them is run."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from pipeline.base import files

_PACKAGE = Path(__file__).parents[1]
_STATEMENT = re.compile(
    rb"^[ \t]*(import[ \t][^\n]+|from[ \t]+[\w.]+[ \t]+import[ \t]*(?:\([^)]*\)|[^\n(]+))", re.MULTILINE
)
_QUOTED = re.compile(rb"""["'](pipeline(?:\.\w+)+)["']""")

Imports = Callable[[Path], tuple[str, ...]]


@cache
def digest(module: str) -> str:
    """One digest for a module of this package and all it imports of it; see ``of_module``."""
    return files.digest_of(of_module(module))


def of_module(module: str) -> Mapping[str, str]:
    """SHA-256 of every file of this package that a module of it imports, by path in the package.

    Imports count wherever they stand, within functions too, and so do modules whose full name stands in quotes: they
    are run as ``python -m``, or imported by name. The package's own ``__init__.py`` is left out: it says the version.
    """
    found = _PACKAGE.parent.joinpath(*module.split("."))
    path = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
    digests = {item: _file_digest(item) for item in reached(path, _PACKAGE.parent, _imports)}
    named = {item.relative_to(_PACKAGE).as_posix(): digest for item, digest in digests.items()}
    del named["__init__.py"]
    return dict(sorted(named.items()))


def reached(path: Path, root: Path, imports: Imports) -> list[Path]:
    """A file and all it imports below ``root``, transitively, sorted.

    ``imports`` gives the full names of what a file imports; those that are no files below ``root`` do not matter.
    """
    waiting, seen = [path], set[Path]()
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            parts = current.relative_to(root).parts[:-1]
            names = [".".join(parts[: depth + 1]) for depth in range(len(parts))]  # its own packages run first
            waiting += [file for module in (*names, *imports(current)) for file in _module_files(root, module)]
    return sorted(seen)


def imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Full names that a file's import statements may mean, of modules or of what is in them.

    Relative imports start from ``package``, the file's.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from (module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names))


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """What a file of this package imports; parsing only the statements that import takes a thirtieth of the time."""
    text, package = path.read_bytes(), path.parent.relative_to(_PACKAGE.parent).parts
    names = {name.decode() for name in _QUOTED.findall(text)}
    for statement in _STATEMENT.findall(text):
        with contextlib.suppress(SyntaxError):  # a line of a docstring that begins with "import"
            names.update(imported(ast.parse(statement), package))
    return tuple(sorted(name for name in names if name.split(".")[0] == _PACKAGE.name))


_file_digest = cache(files.sha256_file)


@cache
def _module_files(root: Path, module: str) -> tuple[Path, ...]:
    """The files below ``root`` that importing ``module`` would run: its packages' ``__init__.py`` and itself."""
    parts = [part for part in module.split(".") if part]
    packages = [root.joinpath(*parts[: depth + 1], "__init__.py") for depth in range(len(parts))]
    found = (*packages, root.joinpath(*parts).with_suffix(".py")) if parts else ()
    return tuple(path for path in found if path.is_file())
