"""A manifest belongs to one state of files."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.repository import manifest as manifests
from pipeline.repository import publish as publishing
from pipeline.repository.manifest import read_manifest
from pipeline.repository.versions import state_dir
from tests.unit.repository.bench import Bench


class _Died(BaseException):
    pass


def die(*_: Any, **__: Any) -> Any:
    raise _Died


def gates(bench: Bench, number: int, config: str = "max_batch_size: 4\n") -> Any:
    version = bench.version(config=config)
    version.manifest["gates"] = number  # type: ignore[index]
    return version


@pytest.mark.parametrize(("dies_at", "told"), [("_swap", 1), ("finish", 2)])
def test_after_a_death_the_manifest_is_that_of_the_files_that_stand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, dies_at: str, told: int
) -> None:
    bench.publish(gates(bench, 1))
    with monkeypatch.context() as patch:
        patch.setattr(publishing if dies_at == "_swap" else manifests, dies_at, die)
        patch.setattr(manifests, "settle", lambda *_: None)  # nothing cleans up after SIGKILL
        with pytest.raises(_Died):
            bench.publish(gates(bench, 2, "max_batch_size: 8\n"))
    folder = state_dir(bench.root) / "manifests" / "m_onnx"
    assert [item.name for item in sorted(folder.iterdir())] == ["1.json", "1.json.next"]
    found = read_manifest(bench.root, "m_onnx", 1)
    assert found is not None
    assert (found["gates"], "8" in bench.tree["m_onnx/config.pbtxt"]) == (told, told == 2)
    manifests.settle(bench.root, "m_onnx")
    assert [item.name for item in folder.iterdir()] == ["1.json"]
    assert read_manifest(bench.root, "m_onnx", 1) == found


def test_new_gates_alone_are_one_write_and_no_swap(bench: Bench) -> None:
    bench.publish(gates(bench, 1))
    before = (bench.root / "m_onnx").stat().st_ino
    bench.publish(gates(bench, 2))
    found = read_manifest(bench.root, "m_onnx", 1)
    assert found is not None
    assert (found["gates"], (bench.root / "m_onnx").stat().st_ino) == (2, before)


def level(bench: Bench) -> str:
    found = read_manifest(bench.root, "m_onnx", 1)
    assert found is not None
    return manifests.level_of(found)


def test_a_level_is_raised_and_never_lowered_while_nothing_changes(bench: Bench) -> None:
    bench.publish(bench.version())
    assert level(bench) == "none"
    bench.publish(bench.version(), proof="served")
    assert level(bench) == "served"
    bench.publish(bench.version())
    assert level(bench) == "served"
    assert not manifests.raise_level(bench.root, "m_onnx", 1, "inspected")
    assert level(bench) == "served"


def test_what_changes_has_to_be_proven_again(bench: Bench) -> None:
    bench.publish(bench.version(), proof="served")
    bench.publish(bench.version(config="max_batch_size: 8\n"))
    assert level(bench) == "none"
    assert manifests.raise_level(bench.root, "m_onnx", 1, "served")
    assert level(bench) == "served"


def test_nothing_is_raised_where_there_is_no_manifest(bench: Bench) -> None:
    (bench.root / "m_onnx" / "1").mkdir(parents=True)
    assert not manifests.raise_level(bench.root, "m_onnx", 1, "served")


@pytest.mark.parametrize("left", ["{", "[]", "{}"])
def test_a_damaged_record_counts_for_nothing_and_goes(bench: Bench, left: str) -> None:
    bench.publish(bench.version())
    before = read_manifest(bench.root, "m_onnx", 1)
    pending = state_dir(bench.root) / "manifests" / "m_onnx" / "1.json.next"
    pending.write_text(left)
    assert read_manifest(bench.root, "m_onnx", 1) == before
    manifests.settle(bench.root, "m_onnx")
    assert not pending.exists()
