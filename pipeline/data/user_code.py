"""A user's own Python: found, hashed without running it, loaded, and called with errors that name the user's line."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pipeline.base import closure, files, reads
from pipeline.base.errors import ConfigError, PipelineError, StageError
from pipeline.data import torchvision_compat

Resolve = Callable[[str], Path]
"""Turns a path relative to the YAML into a path."""

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
_folders: set[Path] = set()
"""Folders whose modules were imported for a user's file; a second folder may hold other modules of the same names."""


def load_callable(reference: str, resolve: Resolve) -> Callable[..., Any]:
    """Import ``file.py:name`` or ``package.module:name`` and return the callable.

    The file's folder is importable while this runs, so that user code may import its neighbours; for a package it is
    the folder that holds it. A file is run once per content.

    Raises:
        ConfigError: no such file, module or name, or it is not callable.
        StageError: the code raised while being imported.
    """
    location, _, name = reference.rpartition(":")
    path, root = _locate(location, resolve)
    with user_errors(f"importing {location}", path), _importable(root):
        module = _load_file(path) if location.endswith(".py") else importlib.import_module(location)
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(
            f"no callable {name!r} in {location}",
            found=f"it defines {', '.join(sorted(names)) or 'none'}",
            where=str(path),
            hint=f"did you mean {near[0]}?" if near else f"define {name} there",
        )
    return found  # type: ignore[no-any-return]


def call(reference: str, resolve: Resolve, arguments: Mapping[str, Any], what: str) -> Any:
    """Load a user's callable and call it with keyword arguments; ``what`` is the stage and action, for the error.

    Raises:
        ConfigError: it does not exist.
        StageError: it raised; the error names the user's file and line.
    """
    function = load_callable(reference, resolve)
    path, root = _locate(reference.rpartition(":")[0], resolve)
    with user_errors(what, path), _importable(root):
        return function(**arguments)


@contextlib.contextmanager
def user_errors(what: str, path: Path | None = None) -> Iterator[None]:
    """Turn whatever user code raises into a StageError that names the deepest line of the user's, else ``path``."""
    try:
        yield
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        message = "".join(traceback.format_exception_only(error)).strip()
        raise StageError(what, found=message, where=location_of(error) or str(path or "")) from error


def location_of(error: BaseException) -> str:
    """``file:line`` of the deepest frame outside this package and the installed libraries, or empty."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.resolve().is_relative_to(root) for root in (_PACKAGE, *_LIBRARIES)):
            return f"{path}:{frame.lineno}"
    return ""


def digests(reference: str, resolve: Resolve) -> dict[str, str]:
    """SHA-256 of the user's file and, transitively, of every neighbour it imports; runs none of it.

    Imports are read from the syntax tree. A module counts as a neighbour when it lies below the file's folder or, for
    ``package.module``, below the same top-level package. Keys are POSIX paths relative to that folder.

    Raises:
        ConfigError: a file is missing or is not valid Python.
    """
    location = reference.rpartition(":")[0]
    path, root = _locate(location, resolve)
    return _closure(path, root, "" if location.endswith(".py") else location.split(".")[0])


def _closure(path: Path, root: Path, package: str) -> dict[str, str]:
    """Digests of a file and of all it imports below ``root``; within ``package`` alone where one is named."""

    def imports(current: Path) -> tuple[str, ...]:
        names = closure.imported(_tree(current), current.parent.relative_to(root).parts)
        return tuple(name for name in names if not package or name.split(".")[0] == package)

    reached = sorted((item.relative_to(root).as_posix(), item) for item in closure.reached(path, root, imports))
    return {name: files.sha256_file(item) for name, item in reached}


def _locate(location: str, resolve: Resolve) -> tuple[Path, Path]:
    """The file of a reference and the folder its imports start from."""
    if location.endswith(".py"):
        path = resolve(location).resolve()
        if not path.is_file():
            raise ConfigError("no such file", found=location, where=str(path), hint="paths are relative to the YAML")
        return path, path.parent
    names = location.split(".")
    search: list[str] | None = [str(resolve(".")), *sys.path]
    for depth in range(len(names)):
        # The finder runs nothing, unlike importlib.util.find_spec, which imports the parent packages.
        spec = importlib.machinery.PathFinder.find_spec(".".join(names[: depth + 1]), search)
        if spec is None:
            found = f"{names[depth]!r} is neither next to the YAML nor installed"
            raise ConfigError(f"no module {location}", found=found, hint="give a file: 'file.py:callable'")
        search = list(spec.submodule_search_locations or [])
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(f"module {location} is not a Python file", found=str(spec and spec.origin))
    path = Path(spec.origin).resolve()
    levels = len(names) + (path.name == "__init__.py")
    return path, path.parents[levels - 1]


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        where = f"{path}:{getattr(error, 'lineno', None) or 1}"
        raise ConfigError("user code is not valid Python", found=str(error), where=where) from error


def _load_file(path: Path) -> ModuleType:
    # Named by content: an edited file is another module, and TorchScript, which writes the module's name into its
    # archives, gives the same bytes wherever the file lies. The module stays in sys.modules because torch.jit.script
    # and pickle look classes up by module name.
    stem = re.sub(r"\W", "_", path.stem, flags=re.ASCII)  # TorchScript cannot read a name such as `test-net` back
    name = f"_user_{stem}_{files.digest_of(_closure(path, path.parent, ''))[:12]}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceOnly(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _SourceOnly(importlib.machinery.SourceFileLoader):
    """Ignores cached bytecode: it is matched by whole seconds and size, so that of a file just edited may be stale."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


@contextlib.contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Put a folder first on the import path, and forget modules of the same names from another user's folder."""
    others = _folders - {root}
    for name, module in list(sys.modules.items()):
        origin = Path(getattr(module, "__file__", None) or "/")
        if origin.parent in others and not name.startswith("_user_") and root.joinpath(f"{name}.py").is_file():
            del sys.modules[name]
    if not any(root.is_relative_to(library) for library in _LIBRARIES):
        _folders.add(root)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    torchvision_compat.prepare()
    reads.start()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(root))
