"""Tests on a real GPU: ``make test-gpu``. Written where there was none; a machine without one fails them.

Each test runs once for every installed flavour that builds for this GPU.
"""

from __future__ import annotations

import pytest

from pipeline.formats.tensorrt.engine_session import UnavailableError, compute_capability
from pipeline.machine import tensorrt_flavours
from pipeline.machine.tensorrt_flavours import FlavourName

FLAVOURS: tuple[FlavourName, ...] = ("tensorrt", "tensorrt_rtx")


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """The GPU's compute capability: ``sm_89``."""
    try:
        return f"sm_{compute_capability().replace('.', '')}"
    except UnavailableError as error:
        pytest.fail(f"these tests need a GPU and the package's `gpu` extra: {error}")


@pytest.fixture(scope="session")
def usable(gpu: str) -> tuple[FlavourName, ...]:
    """The installed flavours that build for this GPU; none is a failure."""
    known = [tensorrt_flavours.flavour(name) for name in FLAVOURS if tensorrt_flavours.installed(name) is not None]
    found = tuple(item.name for item in known if item.capabilities is None or gpu in item.capabilities)
    if not found:
        names = ", ".join(item.name for item in known) or "neither flavour of TensorRT"
        pytest.fail(f"{names} is installed, and that builds nothing for {gpu}")
    return found


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest, usable: tuple[FlavourName, ...], gpu: str) -> FlavourName:
    name: FlavourName = request.param
    if name not in usable:
        pytest.skip(f"{name} is not installed, or does not build for {gpu}")
    return name
