"""What a plan says of the rows that Triton serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.build import expected
from pipeline.plan import Variant


@pytest.mark.parametrize(
    ("serve", "flavour", "obstacle"),
    [
        ("embedded", "tensorrt_rtx", ""),
        ("container", "tensorrt", ""),
        ("container", "tensorrt_rtx", "no container has a backend for TensorRT-RTX"),
    ],
)
def test_a_container_is_not_asked_for_what_no_container_has(serve: str, flavour: str, obstacle: str) -> None:
    config = SimpleNamespace(serve=SimpleNamespace(engine=serve))
    run: Any = SimpleNamespace(plan=SimpleNamespace(loaded=SimpleNamespace(config=config)))
    row: Variant | Any = SimpleNamespace(engine=SimpleNamespace(obstacle="", spec=SimpleNamespace(flavour=flavour)))
    assert expected._obstacle(run, row) == obstacle
