"""What a build emits before anything is proven."""

from __future__ import annotations

import pytest

from pipeline.base import files, model_config
from pipeline.base.errors import StageError
from pipeline.repository import candidate as candidates
from pipeline.repository import publish as publishing
from pipeline.repository.manifest import golden_path, read_manifest
from pipeline.repository.versions import state_dir, version_numbers
from tests.unit.repository.bench import Bench


def state(bench: Bench) -> dict[str, str]:
    """Digests of the records, locks apart."""
    found = files.tree_digests(state_dir(bench.root)) if state_dir(bench.root).is_dir() else {}
    return {name: digest for name, digest in found.items() if "lock" not in name}


def test_a_candidate_is_a_whole_repository_and_the_root_stays_as_it_was(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    before, records = bench.tree, state(bench)
    with candidates.opened(bench.root, ["m_onnx"], run_id="r") as candidate:
        entry = candidate.add(bench.version("two", "max_batch_size: 8\n"), retain=None)
        assert (entry.version, entry.created) == (2, True)
        shown = {name: (candidate.path / name).read_text() for name in files.tree_digests(candidate.path)}
        assert shown == {
            "m_onnx/1/model.onnx": "one", "m_onnx/2/model.onnx": "two", "m_onnx/config.pbtxt": "max_batch_size: 8\n",
        }  # fmt: skip
        one = "m_onnx/1/model.onnx"
        assert (candidate.path / one).stat().st_ino == (bench.root / one).stat().st_ino
        for number in (1, 2):
            manifest = read_manifest(candidate.path, "m_onnx", number)
            assert manifest is not None
            assert golden_path(candidate.path, manifest).read_bytes() == b"golden"
    assert (bench.tree, state(bench)) == (before, records)


def test_a_first_candidate_makes_no_root(bench: Bench) -> None:
    with candidates.opened(bench.root, ["m_onnx"], run_id="r") as candidate:
        candidate.add(bench.version(), retain=None)
    assert not bench.root.exists()


def test_what_use_leaves_in_a_candidate_is_not_published(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    with candidates.opened(bench.root, ["m_onnx"], run_id="r") as candidate:
        candidate.add(bench.version("two"), retain=None)
        for number in ("1", "2"):
            cache = candidate.path / "m_onnx" / number / "__pycache__"
            cache.mkdir()
            (cache / "model.pyc").write_text("bytecode")
        publishing.put(candidate, "m_onnx", proof="served")
    assert sorted(bench.tree) == ["m_onnx/1/model.onnx", "m_onnx/2/model.onnx", "m_onnx/config.pbtxt"]


def test_a_candidate_that_was_changed_is_not_published(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    before, records = bench.tree, state(bench)
    with candidates.opened(bench.root, ["m_onnx"], run_id="r") as candidate:
        candidate.add(bench.version("two"), retain=None)
        (candidate.path / "m_onnx" / "2" / "model.onnx").write_text("tw0")
        with pytest.raises(StageError, match="was changed while version 2 was being proven"):
            publishing.put(candidate, "m_onnx", proof="served")
    assert (bench.tree, state(bench)) == (before, records)


def test_a_version_that_came_meanwhile_is_not_overwritten(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    with candidates.opened(bench.root, ["m_onnx"], run_id="r") as candidate:
        candidate.add(bench.version("two"), retain=None)
        (bench.root / "m_onnx" / "2").mkdir()
        (bench.root / "m_onnx" / "2" / "model.onnx").write_text("theirs")
        with pytest.raises(StageError, match="the newest version is 2 now"):
            publishing.put(candidate, "m_onnx", proof="served")
    assert bench.tree["m_onnx/2/model.onnx"] == "theirs"


def test_a_file_that_came_meanwhile_stays(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    with candidates.opened(bench.root, ["m_onnx"], run_id="r") as candidate:
        candidate.add(bench.version("two"), retain=None)
        (bench.root / "m_onnx" / "notes.md").write_text("mine")
        publishing.put(candidate, "m_onnx", proof="served")
    assert bench.tree["m_onnx/notes.md"] == "mine"


def publish_all(bench: Bench, members: str, pins: dict[str, int], *, ensemble: bool = True, **options: int) -> None:
    """Members a and b of one content, and the ensemble m over them."""
    with candidates.opened(bench.root, ["a", "b", "m"], run_id="r") as candidate:
        for name in ("a", "b"):
            candidate.add(bench.version(members, name=name), retain=options.get("retain"))
        candidate.add(bench.ensemble(pins), retain=options.get("retain"))
        for name in ("a", "b", *(["m"] if ensemble else [])):
            publishing.put(candidate, name, proof="served")
            check(bench)
        for name in ("a", "b", *(["m"] if ensemble else [])):
            publishing.narrow(candidate, name)
            check(bench)


def served(bench: Bench, name: str) -> list[int]:
    config = model_config.parse_text((bench.root / name / "config.pbtxt").read_text(), name)
    return model_config.served_versions(config, version_numbers(bench.root / name))


def check(bench: Bench) -> None:
    """Every ensemble finds the versions that it names."""
    if not (bench.root / "m").is_dir():
        return
    config = model_config.parse_text((bench.root / "m" / "config.pbtxt").read_text(), "m")
    for step in config.ensemble_scheduling.step:
        assert step.model_version in (-1, *served(bench, step.model_name))


def test_members_keep_what_the_ensemble_names_until_it_has_moved(bench: Bench) -> None:
    publish_all(bench, "one", {"a": 1, "b": 1})
    publish_all(bench, "two", {"a": 2, "b": 2}, ensemble=False)
    assert (served(bench, "a"), served(bench, "b")) == ([1, 2], [1, 2])
    publish_all(bench, "two", {"a": 2, "b": 2})
    assert (served(bench, "a"), served(bench, "b")) == ([2], [2])
    assert (bench.root / "a" / "config.pbtxt").read_text() == "max_batch_size: 4\n"


def test_retain_never_removes_a_pinned_version(bench: Bench) -> None:
    publish_all(bench, "one", {"a": 1, "b": 1}, retain=1)
    publish_all(bench, "two", {"a": 2, "b": 2}, retain=1, ensemble=False)
    publish_all(bench, "three", {"a": 3, "b": 3}, retain=1, ensemble=False)
    assert version_numbers(bench.root / "a") == [1, 3]
    publish_all(bench, "three", {"a": 3, "b": 3}, retain=1)
    assert version_numbers(bench.root / "a") == [1, 3]  # a server may still be loading what was asked a moment ago
    publish_all(bench, "three", {"a": 3, "b": 3}, retain=1)
    assert version_numbers(bench.root / "a") == [3]
    assert [read_manifest(bench.root, "a", number) is None for number in (1, 2, 3)] == [True, True, False]


def test_an_ensemble_of_older_builds_is_pinned_before_its_members_move(bench: Bench) -> None:
    publish_all(bench, "one", {"a": -1, "b": -1})
    publish_all(bench, "two", {"a": 2, "b": 2}, ensemble=False)
    config = (bench.root / "m" / "config.pbtxt").read_text()
    assert config.count("model_version: 1") == 2
    assert served(bench, "a") == [1, 2]
