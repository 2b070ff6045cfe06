"""torchvision, also where its compiled extension does not fit the installed torch; we import it here alone."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.base.errors import MissingError

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that ``import torchvision`` attaches Python code to, whether its extension is there or not (0.28.0,
torchvision/_meta_registrations.py)."""

_NETWORK_TIMEOUT_S = 15.0

_kept: list[Any] = []
"""Libraries of operator schemas; torch drops the schemas when the object goes."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing; before somebody imports torchvision, it is made to import."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _is_importable()


_FINDER = _Finder()


def prepare() -> None:
    """Make ``import torchvision`` work for whoever does it from now on: a user's code, or another library."""
    if "torchvision" not in sys.modules and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def load() -> ModuleType:
    """Import torchvision.

    Raises:
        MissingError: torchvision is not installed, or cannot be imported.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    if not _is_importable():
        raise MissingError("torchvision is not installed", hint="pip install 'model-repository-pipeline[torchvision]'")
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        hint = "install the torchvision that belongs to this torch, from the same place"
        raise MissingError("torchvision cannot be imported", found=found, hint=hint) from error


def _is_importable() -> bool:
    """Whether torchvision is installed; one that cannot be imported as it is gets what it lacks.

    A torchvision built for CUDA cannot load its extension beside a CPU build of torch, and then ``import torchvision``
    fails on operators that do not exist. Their schemas are declared here, only in that case: models and transforms
    work, while the detection operators themselves stay absent.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    if not _extension_loads(Path(spec.origin).parent):
        _declare_operators()
    return True


def _extension_loads(package: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(str(package / "_C.so"))
    except OSError:
        return False
    return True


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    _kept.append(library)
    for schema in _OPERATORS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)


@contextlib.contextmanager
def fetching() -> Iterator[None]:
    """Bound the wait for a download, and keep the library's progress bars off the terminal.

    torch.hub and torchvision.datasets open URLs without a timeout: an address that swallows packets would hold them for
    minutes.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
