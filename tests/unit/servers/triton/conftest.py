"""The stand-in backends as the server gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.servers.triton import embedded


@pytest.fixture(scope="session")
def backend_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backend directory, assembled; the server's own files in it are empty."""
    home, made = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("backends")
    (home / "backends/python").mkdir(parents=True)
    for name in ("backends/python/libtriton_python.so", "backends/python/triton_python_backend_utils.py", "stub"):
        (home / name).touch()
    embedded._assemble(made, home, home / "stub")
    return made
