"""Ensembles that name versions, and members that keep them."""

from __future__ import annotations

import pytest

from pipeline.base import model_config
from pipeline.repository import pins
from tests.unit.repository.bench import Bench


def policy(config: bytes) -> str:
    message = model_config.parse_text(config.decode(), "x")
    return " ".join(str(message.version_policy).split())


@pytest.mark.parametrize(
    ("text", "numbers", "pinned", "expected"),
    [
        ("max_batch_size: 4", (1, 2), (), ""),
        ("max_batch_size: 4", (1, 2), (2,), ""),
        ("max_batch_size: 4", (1, 2), (1,), "specific { versions: 1 versions: 2 }"),
        ("version_policy { latest { num_versions: 1 } }", (1, 2, 3), (1, 3), "specific { versions: 1 versions: 3 }"),
        ("version_policy { all { } }", (1, 2), (1,), "all { }"),
        ("version_policy { specific { versions: 3 } }", (1, 3, 4), (1,), "specific { versions: 1 versions: 3 }"),
        ("max_batch_size: 4", (2,), (1,), ""),  # pinned, and not there
    ],
)
def test_a_policy_is_widened_by_what_is_pinned_and_by_no_more(
    text: str, numbers: tuple[int, ...], pinned: tuple[int, ...], expected: str
) -> None:
    config = pins.widened(text.encode(), numbers, pinned)
    assert policy(config) == expected
    if policy(config) == policy(text.encode()):
        assert config == text.encode()  # not a byte is touched


def test_anybodys_ensembles_pin(bench: Bench) -> None:
    for name, members in (("theirs", {"a": 1, "b": 2}), ("ours", {"a": 3, "b": -1})):
        (bench.root / name).mkdir(parents=True)
        (bench.root / name / "config.pbtxt").write_bytes(bench.ensemble(members).model_files["config.pbtxt"])
    (bench.root / "broken").mkdir()
    (bench.root / "broken" / "config.pbtxt").write_bytes(b"\xff no config")
    assert pins.standing(bench.root) == {"a": {1, 3}, "b": {2}}
    assert pins.standing(bench.root, without=["ours"]) == {"a": {1}, "b": {2}}


def test_an_ensemble_reaches_what_it_names_else_the_newest_that_is_served(bench: Bench) -> None:
    for name, text in (("a", ""), ("b", "version_policy { specific { versions: 1 } }")):
        for number in (1, 2):
            (bench.root / name / str(number)).mkdir(parents=True)
        (bench.root / name / "config.pbtxt").write_text(text)
    config = bench.ensemble({"a": -1, "b": -1}).model_files["config.pbtxt"]
    assert pins.member_versions(bench.root, model_config.parse_text(config.decode(), "x")) == {"a": 2, "b": 1}
    config = bench.ensemble({"a": 1, "b": -1}).model_files["config.pbtxt"]
    assert pins.member_versions(bench.root, model_config.parse_text(config.decode(), "x")) == {"a": 1, "b": 1}
