"""Classic TensorRT's hooks, and the progress of a build, against a stand-in for the library."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.formats.tensorrt.failures import FailureError

from .test_spec import spec

LIBRARY = ("pipeline.formats.tensorrt.common", "pipeline.formats.tensorrt.classic")


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+timed"


class Config:
    """Takes what is set; refuses a timing cache that is not `good`, and makes none of a damaged one."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.cleared: list[str] = []
        self.hardware_compatibility_level = "default"
        self.cache: Cache | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return None if data == b"damaged" else Cache(data)

    def set_timing_cache(self, cache: Cache | None, ignore_mismatch: bool) -> bool:
        if cache is None:  # pybind11: it takes a reference
            raise TypeError("set_timing_cache(): incompatible function arguments")
        assert not ignore_mismatch
        self.cache = cache
        return cache.data in (b"", b"good")

    def get_timing_cache(self) -> Cache:
        assert self.cache is not None
        return self.cache


class Runtime:
    """Gives an engine of ``plan`` alone, and only to who lets it run the plan's own code."""

    engine_host_code_allowed = False

    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if plan != b"plan" or not self.engine_host_code_allowed:
            return None
        inspector = SimpleNamespace(get_engine_information=lambda form: f"Layers: {form}")
        return SimpleNamespace(create_engine_inspector=lambda: inspector)


def configured(classic: Any, config: Config, asked: Any, timing_cache: Path | None = None) -> tuple[str, ...]:
    """As the child does it, around the making of the builder."""
    capabilities: tuple[str, ...] = classic.configure(config, asked, timing_cache, classic.prepare(asked))
    return capabilities


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
    library.__dict__.update(parts, Runtime=Runtime, LayerInformationFormat=SimpleNamespace(ONELINE="oneline"))
    # Annotations are not evaluated, so the classes that only they name need not be there.
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    for name in LIBRARY:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("pipeline.formats.tensorrt.classic")
    monkeypatch.setattr(module, "devices", lambda: (module.Device(index=0, name="NVIDIA L4 (x)", capability="sm_89"),))
    monkeypatch.setattr(module.Device, "take", lambda self: None)
    yield module
    for name in LIBRARY:
        sys.modules.pop(name, None)


def test_what_is_asked_is_set_and_the_gpu_at_hand_is_told(classic: Any) -> None:
    config = Config()
    asked = spec(flavour="tensorrt", refit=True, version_compatible=True, hardware_compatibility="ampere_plus")
    assert configured(classic, config, asked) == ("sm_89",)
    assert config.flags == ["compatible", "refit"]
    assert config.hardware_compatibility_level == "ampere"
    assert configured(classic, Config(), spec(flavour="tensorrt", gpus=("sm_89",))) == ("sm_89",)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"gpus": ("sm_80",)}, "gpu", "the GPU here is sm_89 (NVIDIA L4 (x)), not sm_80"),
        (
            {"hardware_compatibility": "same_compute_capability"},
            "unsupported",
            "hardware_compatibility same_compute_capability",
        ),
    ],
)
def test_what_cannot_be_set_is_told(classic: Any, changes: Any, kind: str, text: str) -> None:
    with pytest.raises(FailureError) as caught:
        configured(classic, Config(), replace(spec(flavour="tensorrt"), **changes))
    assert caught.value.values == {"kind": kind, "lines": [text]}


def test_of_several_gpus_the_one_of_the_capability_is_taken(classic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tuple(classic.Device(index=n, name="x", capability=f"sm_{n}0") for n in (8, 9))
    taken: list[int] = []
    monkeypatch.setattr(classic, "devices", lambda: both)
    monkeypatch.setattr(classic.Device, "take", lambda self: taken.append(self.index))
    assert configured(classic, Config(), spec(flavour="tensorrt", gpus=("sm_90",))) == ("sm_90",)
    assert configured(classic, Config(), spec(flavour="tensorrt")) == ("sm_80",)
    assert taken == [9, 8]


def test_a_flag_the_version_lacks_is_told(classic: Any) -> None:
    del sys.modules["tensorrt"].BuilderFlag.REFIT
    with pytest.raises(FailureError) as caught:
        configured(classic, Config(), spec(flavour="tensorrt", refit=True))
    assert caught.value.values == {"kind": "unsupported", "lines": ["the builder flag REFIT"]}


@pytest.mark.parametrize(
    ("kept", "used"), [(None, b""), (b"good", b"good"), (b"of another GPU", b""), (b"damaged", b"")]
)
def test_the_timing_cache_is_kept_per_version_and_gpu(
    classic: Any, kept: bytes | None, used: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "caches/11.4.0-NVIDIA-L4-x--sm_89.cache"
    if kept is not None:
        file.parent.mkdir()
        file.write_bytes(kept)
    config = Config()
    asked = spec(flavour="tensorrt")
    configured(classic, config, asked, file.parent)
    assert config.cache is not None
    assert config.cache.data == used
    log = SimpleNamespace(table="Layers:")
    classic.finish(config, log, tmp_path / "model.plan", file.parent, classic.prepare(asked))
    assert file.read_bytes() == used + b"+timed"


def test_without_a_layer_table_in_the_log_the_engine_is_asked(classic: Any, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    log = SimpleNamespace(table="", last_errors=lambda: ["its last words"])
    device = classic.prepare(spec(flavour="tensorrt"))
    classic.finish(Config(), log, plan, None, device)
    assert log.table == "Layers: oneline"
    plan.write_bytes(b"another")
    with pytest.raises(FailureError) as caught:
        classic.finish(Config(), SimpleNamespace(table="", last_errors=log.last_errors), plan, None, device)
    assert caught.value.values == {"kind": "build", "lines": ["its last words"]}


def test_nested_phases_are_one_share_that_never_falls(classic: Any) -> None:
    told: list[tuple[str, float]] = []
    monitor = sys.modules["pipeline.formats.tensorrt.common"].Monitor(lambda phase, share: told.append((phase, share)))
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
    common = sys.modules["pipeline.formats.tensorrt.common"]
    library, config = sys.modules["tensorrt"], Config()
    builder = SimpleNamespace(create_builder_config=lambda: config)
    library.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    plain = replace(spec(flavour="tensorrt"), profiles=())
    common.configure(builder, plain, lambda text, share: None)
    assert config.cleared == []
    library.BuilderFlag.TF32 = "tf32"
    common.configure(builder, plain, lambda text, share: None)
    assert config.cleared == ["tf32"]


def test_a_profile_the_bindings_refuse_is_the_profiles_failure(classic: Any) -> None:
    """They raise RuntimeError for shapes that contradict each other; a profile refused whole has another index."""
    common = sys.modules["pipeline.formats.tensorrt.common"]
    library, config = sys.modules["tensorrt"], Config()

    class Profile:
        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            if low > high:
                raise RuntimeError("Shape provided for min is inconsistent with other shapes.")

    library.__dict__.update(ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"), Dims=tuple)
    builder: Any = SimpleNamespace(create_builder_config=lambda: config, create_optimization_profile=Profile)
    asked = spec(flavour="tensorrt")
    turned = {name: span._replace(min=(9, 3)) for name, span in asked.profiles[0].items()}
    config.add_optimization_profile = lambda profile: -1  # type: ignore[attr-defined]
    for profiles, reason in (((turned,), "Shape provided for min is inconsistent"), (asked.profiles, "x")):
        with pytest.raises(FailureError) as caught:
            common.configure(builder, replace(asked, profiles=profiles), lambda text, share: None)
        assert caught.value.values["kind"] == "profile"
        assert caught.value.values["lines"][0].startswith("optimization profile 0 was refused: ")
        assert reason in caught.value.values["lines"][0]
