import importlib.util
import sys
from importlib import metadata
from typing import Any

import pytest

from pipeline.machine import tensorrt_flavours as flavours


def here(monkeypatch: pytest.MonkeyPatch, *modules: str, **versions: str) -> None:
    """Pretend that exactly these modules can be imported and these distributions are installed."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(metadata, "version", version)


def refused(name: Any = "tensorrt_rtx", precision: str = "fp16", gpus: Any = (), **options: Any) -> list[Any]:
    return flavours.refusals(name, precision=precision, gpus=gpus, options=options)


def test_installed_needs_the_module_and_takes_the_version_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, tensorrt_rtx_cu12_bindings="1.7")
    assert flavours.installed("tensorrt_rtx") is None
    here(monkeypatch, "tensorrt_rtx_bindings", tensorrt_rtx_cu12_bindings="1.7")
    assert flavours.installed("tensorrt_rtx") == "1.7"
    assert flavours.installed("tensorrt") is None
    here(monkeypatch, "tensorrt")
    assert flavours.installed("tensorrt") == "unknown"


def test_installed_imports_nothing() -> None:
    before = set(sys.modules)
    flavours.installed("tensorrt_rtx")
    assert not [name for name in set(sys.modules) - before if name.startswith("tensorrt")]


def test_the_named_flavour_is_taken_else_what_can_build_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "tensorrt", "tensorrt_rtx")
    assert flavours.choose("tensorrt", gpu=False).name == "tensorrt"
    assert flavours.choose("tensorrt_rtx", gpu=True).name == "tensorrt_rtx"
    assert flavours.choose(None, gpu=True).name == "tensorrt"
    assert flavours.choose(None, gpu=False).name == "tensorrt_rtx"
    here(monkeypatch)
    assert flavours.choose(None, gpu=True).name == "tensorrt_rtx"


def test_capabilities_the_flavour_lacks_are_refused_with_those_it_has() -> None:
    known = "it builds for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"
    assert refused(gpus=("sm_80", "sm_90")) == [("gpus", f"sm_90: unsupported by this flavour (tensorrt_rtx): {known}")]
    assert refused("tensorrt", gpus=("sm_90", "sm_77")) == []
    assert refused("tensorrt", gpus=("sm_33",)) == [
        ("gpus", "sm_33: unsupported by this flavour (tensorrt): it builds for sm_70 and later")
    ]
    assert refused("tensorrt", gpus=("ampere",)) == [
        ("gpus", "expected compute capabilities such as sm_89; found ampere")
    ]
    assert refused(gpus=("sm_80", "sm_86", "sm_80")) == [("gpus", "sm_80 is named 2 times")]


@pytest.mark.parametrize(
    ("precision", "reason"), [("fp32", "FP32 GEMM"), ("bf16", "HW-specific datatypes"), ("int8", "as Float")]
)
def test_turing_on_rtx_has_fp16_only(precision: str, reason: str) -> None:
    ((key, message),) = refused(precision=precision, gpus=("sm_75", "sm_80"))
    assert (key, message.split(": ")[0]) == ("gpus", f"{precision} on sm_75")
    assert reason in message
    assert refused(precision="fp16", gpus=("sm_75",)) == []
    assert refused(precision=precision, gpus=("sm_80",)) == []
    assert refused("tensorrt", precision=precision, gpus=("sm_75",)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"refit": True},
        {"version_compatible": True},
        {"hardware_compatibility": "ampere_plus"},
        {"timing_cache": "/somewhere"},
    ],
)
def test_options_rtx_lacks_are_refused_and_classic_takes_them(options: dict[str, Any]) -> None:
    ((key, message),) = refused(**options)
    assert key in options
    assert message.startswith(f"{key}: unsupported by this flavour (tensorrt_rtx): ")
    assert refused("tensorrt", **options) == []


def test_options_not_asked_for_are_not_refused() -> None:
    off = {"refit": False, "version_compatible": None, "hardware_compatibility": "none", "timing_cache": None}
    assert refused(**off, weight_streaming=True, workspace_bytes=1 << 20, optimization_level=3) == []
