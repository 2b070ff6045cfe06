"""The order in which the child does its job, with the library and everything written against it played."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.formats.tensorrt import builder, interface
from pipeline.formats.tensorrt.spec import to_json

from .test_spec import spec


def test_the_gpu_is_chosen_before_the_builder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder stays on the GPU that it finds, which is the first one unless another was taken before."""
    done: list[str] = []

    def told(name: str, result: Any = None) -> Any:
        return lambda *_: done.append(name) or result

    common, classic = ModuleType("common"), ModuleType("classic")
    common.__dict__.update(
        Log=lambda: SimpleNamespace(table="Layers:"), make_builder=told("builder"), parse=told("network"),
        ports=lambda _: ([], []), configure=told("config"), build=told("build"),
        products=lambda _: [], quantized=lambda _: [],
    )  # fmt: skip
    classic.__dict__.update(prepare=told("GPU", "a GPU"), configure=lambda *given: (given[-1],), finish=told("finish"))
    monkeypatch.setitem(sys.modules, "pipeline.formats.tensorrt.common", common)
    monkeypatch.setitem(sys.modules, "pipeline.formats.tensorrt.classic", classic)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # what the child sets is taken back
    monkeypatch.setattr(builder, "_library", lambda _: SimpleNamespace(__version__="11.4.0"))
    monkeypatch.setattr(interface, "problems", lambda *_: [])
    job = {"spec": to_json(spec(flavour="tensorrt")), "onnx": "m.onnx", "plan": "m.plan", "timing_cache": None}
    assert builder._build(job)["compute_capabilities"] == ("a GPU",)
    assert done == ["GPU", "builder", "network", "config", "build", "finish"]
