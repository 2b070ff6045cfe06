from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import step as steps
from pipeline.base.step import Outcome, Step
from pipeline.base.store import Store


def step(**changes: Any) -> Step:
    given = {"name": "export[m]", "function": "pipeline.base.files:inside", "arguments": {"opset": 20}, **changes}
    return Step(**given)


class Counting:
    """A produce function that counts its calls."""

    def __init__(self, text: str = "model") -> None:
        self.calls, self.text = 0, text

    def __call__(self, folder: Path) -> Outcome:
        self.calls += 1
        (folder / "model.bin").write_text(self.text)
        return Outcome(file="model.bin", notes=("one",), values={"call": self.calls})


def test_a_step_is_run_once(tmp_path: Path) -> None:
    produce = Counting()
    first = Store(tmp_path).run(step(), produce)
    second = Store(tmp_path).run(step(), produce)
    assert produce.calls == 1
    assert (first.cached, second.cached) == (False, True)
    assert second.outcome == first.outcome == Outcome(file="model.bin", notes=("one",), values={"call": 1})
    assert second.path.read_text() == "model"
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"opset": 19}},
        {"function": "pipeline.base.files:sha256_file"},
        {"function": "pipeline.base.errors:inside"},
        {"inputs": {"model.pt": "ab"}},
        {"tools": ("numpy",)},
        {"upstream": {"source": step()}},
    ],
)
def test_every_part_of_a_step_is_in_its_key(changes: dict[str, Any]) -> None:
    assert step(**changes).key != step().key


@pytest.mark.parametrize("changes", [{"unkeyed": {"folder": "/elsewhere"}}, {"cores": None}, {"name": "export[n]"}])
def test_where_and_how_a_step_is_run_is_not_in_its_key(changes: dict[str, Any]) -> None:
    assert step(**changes).key == step().key


def test_the_python_version_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = step().key
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert step().key != before


def test_a_key_follows_its_upstream_keys() -> None:
    one = step(upstream={"source": step(arguments={"seed": 0})})
    two = step(upstream={"source": step(arguments={"seed": 1})})
    assert one.key != two.key


@pytest.mark.parametrize("damage", ["file", "values", "missing", "extra", "junk"])
def test_a_corrupted_entry_is_built_again_and_the_reason_told(tmp_path: Path, damage: str) -> None:
    produce = Counting()
    entry = Store(tmp_path).run(step(), produce)
    record = entry.directory / "entry.json"
    if damage == "file":
        (entry.directory / "model.bin").write_text("modeL")
    elif damage == "missing":
        (entry.directory / "model.bin").unlink()
    elif damage == "extra":
        (entry.directory / "more").write_text("")
    elif damage == "values":
        record.write_text(record.read_text().replace('"call":1', '"call":9'))
    else:
        record.write_bytes(b"\xff\x00")
    again = Store(tmp_path).run(step(), produce)
    assert produce.calls == 2
    assert not again.cached
    assert again.rebuilt
    assert (again.directory / "model.bin").read_text() == "model"
    assert Store(tmp_path).run(step(), produce).cached


def test_an_entry_made_from_other_upstream_bytes_does_not_hold(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source, derived = step(name="source"), step(name="export", upstream={"source": step(name="source")})
    export = Counting("export")
    first = store.run(source, Counting("weights"))
    store.run(derived, export, {"source": first})
    (first.directory / "model.bin").unlink()
    other = store.run(source, Counting("other weights"))
    again = store.run(derived, export, {"source": other})
    assert export.calls == 2
    assert again.rebuilt == "an earlier step gave other bytes"


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> Outcome:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).run(step(), fails)
    assert not Store(tmp_path).holds(step())
    assert not list((tmp_path / "tmp").iterdir())


def test_partial_work_survives_a_failure_and_goes_with_success(tmp_path: Path) -> None:
    store = Store(tmp_path)
    partial = store.partial(step())
    partial.mkdir(parents=True)
    (partial / "epoch").write_text("3")
    store.run(step(), Counting())
    assert not partial.exists()


def test_gc_deletes_what_was_not_used_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = store.run(step(), Counting()), store.run(step(arguments={}), Counting())
    long_ago = time.time() - 40 * 86400
    os.utime(old.directory / "entry.json", (long_ago, long_ago))
    count, freed = store.collect(unused_days=30)
    assert (count, freed > 0) == (1, True)
    assert not old.directory.exists()
    assert new.directory.exists()


def test_using_an_entry_keeps_it_from_gc(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.run(step(), Counting())
    os.utime(entry.directory / "entry.json", (1, 1))
    store.run(step(), Counting())
    assert store.collect(unused_days=1) == (0, 0)


def test_clear_empties_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.run(step(), Counting())
    assert store.clear() > 0
    assert store.entries() == []


def test_entries_survive_an_unreadable_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.run(step(), Counting())
    (entry.directory / "entry.json").write_text("{")
    assert [row["step"] for row in store.entries()] == ["(unreadable)"]


def test_tool_versions_come_from_metadata() -> None:
    found = steps.tool_versions(("numpy", "no-such-distribution"))
    assert found["no-such-distribution"] == "absent"
    assert found["numpy"][0].isdigit()


def test_values_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path).run(step(), lambda folder: Outcome(values={"max": float("nan")}))
    json.dumps({})
