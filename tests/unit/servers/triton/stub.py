"""Triton's Python stub, as far as a backend sees it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

SHARED = ("stand_in", "triton_facts", "engine_session")


class Tensor:
    """A name and an array."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(SimpleNamespace):
    INTERNAL = 13

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message=message, code=code)


class Response:
    def __init__(self, tensors=(), error=None) -> None:
        self.error = error
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in tensors}


def load(folder: Path) -> Any:
    """A backend's model.py, imported with its own folder on the path and no other backend's modules in mind."""
    utils = ModuleType("triton_python_backend_utils")
    utils.__dict__.update(Tensor=Tensor, TritonError=TritonError, InferenceResponse=Response)
    spec = importlib.util.spec_from_file_location(f"stand_in_{folder.name}", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setitem(sys.modules, "triton_python_backend_utils", utils)
        try:
            spec.loader.exec_module(module)
        finally:
            for name in SHARED:
                sys.modules.pop(name, None)
    return module
