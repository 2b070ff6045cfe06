"""Classic TensorRT's hooks, and the progress of a build, against a stand-in for the library."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.engine.failures import FailureError

from .test_spec import spec

LIBRARY = ("pipeline.engine.common", "pipeline.engine.classic")


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+timed"


class Config:
    """Takes what is set; refuses a timing cache that is not `good`."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.cleared: list[str] = []
        self.hardware_compatibility_level = "default"
        self.cache: Cache | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return cache.data in (b"", b"good")

    def get_timing_cache(self) -> Cache:
        assert self.cache is not None
        return self.cache


@pytest.fixture
def classic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    library = ModuleType("tensorrt")
    parts = {
        "__version__": "11.4.0",
        "ILogger": type("ILogger", (), {"Severity": SimpleNamespace}),
        "IProgressMonitor": type("IProgressMonitor", (), {}),
        "BuilderFlag": SimpleNamespace(VERSION_COMPATIBLE="compatible", REFIT="refit"),
        "HardwareCompatibilityLevel": SimpleNamespace(AMPERE_PLUS="ampere"),
    }
    library.__dict__.update(parts)
    # Annotations are not evaluated, so the classes that only they name need not be there.
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    for name in LIBRARY:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("pipeline.engine.classic")
    monkeypatch.setattr(module, "devices", lambda: (module.Device(index=0, name="NVIDIA L4 (x)", capability="sm_89"),))
    monkeypatch.setattr(module.Device, "take", lambda self: None)
    yield module
    for name in LIBRARY:
        sys.modules.pop(name, None)


def test_what_is_asked_is_set_and_the_gpu_at_hand_is_told(classic: Any) -> None:
    config = Config()
    asked = spec(flavour="tensorrt", refit=True, version_compatible=True, hardware_compatibility="ampere_plus")
    assert classic.configure(config, asked, None) == ("sm_89",)
    assert config.flags == ["compatible", "refit"]
    assert config.hardware_compatibility_level == "ampere"
    assert classic.configure(Config(), spec(flavour="tensorrt", gpus=("sm_89",)), None) == ("sm_89",)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"gpus": ("sm_80",)}, "missing", "the GPU here is sm_89 (NVIDIA L4 (x)), not sm_80"),
        (
            {"hardware_compatibility": "same_compute_capability"},
            "unsupported",
            "hardware_compatibility same_compute_capability",
        ),
    ],
)
def test_what_cannot_be_set_is_told(classic: Any, changes: Any, kind: str, text: str) -> None:
    with pytest.raises(FailureError) as caught:
        classic.configure(Config(), replace(spec(flavour="tensorrt"), **changes), None)
    assert caught.value.values == {"kind": kind, "lines": [text]}


def test_of_several_gpus_the_one_of_the_capability_is_taken(classic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tuple(classic.Device(index=n, name="x", capability=f"sm_{n}0") for n in (8, 9))
    taken: list[int] = []
    monkeypatch.setattr(classic, "devices", lambda: both)
    monkeypatch.setattr(classic.Device, "take", lambda self: taken.append(self.index))
    assert classic.configure(Config(), spec(flavour="tensorrt", gpus=("sm_90",)), None) == ("sm_90",)
    assert classic.configure(Config(), spec(flavour="tensorrt"), None) == ("sm_80",)
    assert taken == [9, 8]


def test_a_flag_the_version_lacks_is_told(classic: Any) -> None:
    del sys.modules["tensorrt"].BuilderFlag.REFIT
    with pytest.raises(FailureError) as caught:
        classic.configure(Config(), spec(flavour="tensorrt", refit=True), None)
    assert caught.value.values == {"kind": "unsupported", "lines": ["the builder flag REFIT"]}


@pytest.mark.parametrize(("kept", "used"), [(None, b""), (b"good", b"good"), (b"of another GPU", b"")])
def test_the_timing_cache_is_kept_per_version_and_gpu(
    classic: Any, kept: bytes | None, used: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "caches/11.4.0-NVIDIA-L4-x--sm_89.cache"
    if kept is not None:
        file.parent.mkdir()
        file.write_bytes(kept)
    config = Config()
    classic.configure(config, spec(flavour="tensorrt"), file.parent)
    assert config.cache is not None
    assert config.cache.data == used
    classic.finish(config, SimpleNamespace(table="Layers:"), tmp_path / "model.plan", file.parent, ("sm_89",))
    assert file.read_bytes() == used + b"+timed"


def test_without_a_layer_table_in_the_log_the_engine_is_asked(classic: Any, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"plan")

    class Runtime:
        def __init__(self, log: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            assert plan == b"plan"
            inspector = SimpleNamespace(get_engine_information=lambda form: f"Layers: {form}")
            return SimpleNamespace(create_engine_inspector=lambda: inspector)

    sys.modules["tensorrt"].__dict__.update(Runtime=Runtime, LayerInformationFormat=SimpleNamespace(ONELINE="oneline"))
    log = SimpleNamespace(table="")
    classic.finish(Config(), log, tmp_path / "model.plan", None, ("sm_89",))
    assert log.table == "Layers: oneline"


def test_nested_phases_are_one_share_that_never_falls(classic: Any) -> None:
    told: list[tuple[str, float]] = []
    monitor = sys.modules["pipeline.engine.common"].Monitor(lambda phase, share: told.append((phase, share)))
    monitor.phase_start("all", None, 2)
    assert monitor.step_complete("all", 0)
    monitor.phase_start("part", "all", 4)
    for step in range(4):
        monitor.step_complete("part", step)
    monitor.phase_finish("part")
    monitor.phase_start("next", "all", 2)
    monitor.phase_finish("next")
    monitor.step_complete("all", 1)
    monitor.phase_finish("all")
    assert told == [
        ("all", 0.0), ("all", 0.5), ("part", 0.5), ("part", 0.625), ("part", 0.75), ("part", 0.875), ("part", 1.0),
        ("next", 1.0), ("all", 1.0),
    ]  # fmt: skip


def test_fp32_is_not_tf32(classic: Any) -> None:
    """TensorRT rounds float32 to 10 bits of mantissa unless it is told not to; a flavour without the flag does not."""
    common = sys.modules["pipeline.engine.common"]
    library, config = sys.modules["tensorrt"], Config()
    builder = SimpleNamespace(create_builder_config=lambda: config)
    library.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    plain = replace(spec(flavour="tensorrt"), profiles=())
    common.configure(builder, plain, lambda text, share: None)
    assert config.cleared == []
    library.BuilderFlag.TF32 = "tf32"
    common.configure(builder, plain, lambda text, share: None)
    assert config.cleared == ["tf32"]
