"""One model, emitted and published."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import files
from pipeline.base.errors import MissingError, StageError
from pipeline.repository.manifest import corruption, golden_path, read_manifest
from pipeline.repository.versions import Version, state_dir, version_numbers
from tests.unit.repository.bench import Bench, engine


def test_a_first_version_is_complete_with_its_manifest(bench: Bench) -> None:
    entry = bench.publish(bench.version(**{"labels.txt": b"a\nb\n", "warmup/golden_x": b"\0"}))
    assert (entry.version, entry.created) == (1, True)
    assert bench.tree == {
        "m_onnx/1/model.onnx": "weights",
        "m_onnx/config.pbtxt": "max_batch_size: 4\n",
        "m_onnx/labels.txt": "a\nb\n",
        "m_onnx/warmup/golden_x": "\0",
    }
    manifest = read_manifest(bench.root, "m_onnx", 1)
    assert manifest is not None
    assert manifest["files"] == {"model.onnx": files.sha256_bytes(b"weights")}
    assert golden_path(bench.root, manifest).read_bytes() == b"golden"


def test_only_model_directories_stand_in_the_root(bench: Bench) -> None:
    bench.publish(bench.version())
    assert [item.name for item in bench.root.iterdir()] == ["m_onnx"]
    assert not list((bench.folder / "repo.state" / "staging").iterdir())


def test_the_same_content_makes_no_new_version(bench: Bench) -> None:
    bench.publish(bench.version())
    before = (bench.root / "m_onnx").stat().st_ino
    entry = bench.publish(bench.version())
    assert (entry.version, entry.created, entry.notes) == (1, False, ())
    assert (bench.root / "m_onnx").stat().st_ino == before


def test_other_content_is_the_next_integer_and_the_old_one_stays(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    inode = (bench.root / "m_onnx/1/model.onnx").stat().st_ino
    assert bench.publish(bench.version("two")).version == 2
    assert bench.tree["m_onnx/1/model.onnx"] == "one"
    assert bench.tree["m_onnx/2/model.onnx"] == "two"
    assert (bench.root / "m_onnx/1/model.onnx").stat().st_ino == inode
    assert bench.publish(bench.version("one")).version == 3


def test_a_new_configuration_alone_makes_no_new_version(bench: Bench) -> None:
    bench.publish(bench.version(**{"labels.txt": b"a\n"}))
    entry = bench.publish(bench.version(config="max_batch_size: 8\n"))
    assert (entry.version, entry.created) == (1, False)
    assert entry.notes == ("version 1 is unchanged; its configuration was updated",)
    assert bench.tree == {"m_onnx/1/model.onnx": "weights", "m_onnx/config.pbtxt": "max_batch_size: 8\n"}


def test_retain_prunes_ours_and_spares_foreign_ones(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    (bench.root / "m_onnx/2").mkdir()
    (bench.root / "m_onnx/2/model.onnx").write_text("foreign")
    bench.publish(bench.version("three"))
    entry = bench.publish(bench.version("four"), retain=1)
    assert version_numbers(bench.root / "m_onnx") == [2, 4]
    assert entry.notes == ("version 1 was removed (retain: 1)", "version 3 was removed (retain: 1)")
    assert read_manifest(bench.root, "m_onnx", 1) is None


def test_a_version_changed_by_hand_is_not_pruned(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    (bench.root / "m_onnx/1/model.onnx").write_text("edited")
    bench.publish(bench.version("two"), retain=1)
    assert version_numbers(bench.root / "m_onnx") == [1, 2]


def test_a_corrupted_newest_version_is_replaced_by_a_new_one(bench: Bench) -> None:
    bench.publish(bench.version())
    (bench.root / "m_onnx/1/model.onnx").write_text("weightS")
    entry = bench.publish(bench.version())
    assert (entry.version, entry.created) == (2, True)
    assert "version 1 no longer matches its manifest (model.onnx)" in entry.notes[0]


def test_a_foreign_model_directory_is_refused(bench: Bench) -> None:
    (bench.root / "m_onnx/1").mkdir(parents=True)
    (bench.root / "m_onnx/config.pbtxt").write_text("theirs")
    with pytest.raises(StageError, match="was not written by this tool"):
        bench.publish(bench.version())
    assert bench.tree == {"m_onnx/config.pbtxt": "theirs"}


def test_a_users_file_in_the_model_directory_stays(bench: Bench) -> None:
    bench.publish(bench.version("one"))
    (bench.root / "m_onnx/notes.md").write_text("mine")
    bench.publish(bench.version("two"))
    assert bench.tree["m_onnx/notes.md"] == "mine"
    assert not bench.publish(bench.version("two")).created


def test_a_directory_artifact_keeps_its_layout(bench: Bench) -> None:
    folder = bench.folder / "big"
    folder.mkdir()
    (folder / "model.onnx").write_text("graph")
    (folder / "model.onnx.data").write_text("weights")
    bench.publish(replace(bench.version(), artifact=folder))
    assert bench.tree["m_onnx/1/model.onnx/model.onnx.data"] == "weights"
    assert not bench.publish(replace(bench.version(), artifact=folder)).created


def test_a_full_disk_leaves_the_repository_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish(bench.version("one"))
    before = bench.tree

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(MissingError, match="no space left"):
        bench.publish(bench.version("two"))
    assert bench.tree == before


def test_manifests_do_not_depend_on_time_or_place(tmp_path: Path) -> None:
    records = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        bench.publish(bench.version())
        records.append((state_dir(bench.root) / "manifests/m_onnx/1.json").read_text())
    assert records[0] == records[1]
    assert str(tmp_path) not in records[0]
    assert json.loads(records[0])["version"] == 1


def test_an_engine_comes_with_its_sidecar(bench: Bench) -> None:
    bench.publish(engine(bench, "bytes", "id"))
    assert bench.tree["m_onnx/1/model.plan"] == "bytes"
    assert bench.tree["m_onnx/1/model.plan.json"] == '{"plan": "bytes"}'
    manifest = read_manifest(bench.root, "m_onnx", 1)
    assert manifest is not None
    assert sorted(manifest["files"]) == ["model.plan", "model.plan.json"]
    assert corruption(bench.root / "m_onnx" / "1", manifest) == ""


def test_an_engine_of_the_same_identity_is_no_new_version(bench: Bench) -> None:
    bench.publish(engine(bench, "bytes", "id"))
    before = bench.tree
    manifest = read_manifest(bench.root, "m_onnx", 1)
    entry = bench.publish(engine(bench, "other bytes", "id"))
    assert (entry.version, entry.created, bench.tree) == (1, False, before)
    assert read_manifest(bench.root, "m_onnx", 1) == manifest
    assert bench.publish(engine(bench, "other bytes", "another")).version == 2


def test_a_new_configuration_keeps_the_record_of_the_engine_that_stands_there(bench: Bench) -> None:
    bench.publish(engine(bench, "bytes", "id"))
    before = read_manifest(bench.root, "m_onnx", 1)
    entry = bench.publish(engine(bench, "other and longer", "id", config="max_batch_size: 8\n"))
    after = read_manifest(bench.root, "m_onnx", 1)
    assert before is not None
    assert after is not None
    assert (entry.version, bench.tree["m_onnx/config.pbtxt"]) == (1, "max_batch_size: 8\n")
    for name in ("files", "sha256", "size_bytes", "properties"):
        assert after[name] == before[name]
    assert corruption(bench.root / "m_onnx" / "1", after) == ""


def test_folders_go_beside_a_file_and_decide_what_is_new(bench: Bench) -> None:
    (bench.folder / "code" / "deep").mkdir(parents=True)
    (bench.folder / "code" / "deep" / "x.py").write_text("one")

    def version() -> Version:
        return replace(bench.version(), beside={"vendor/code": bench.folder / "code"})

    assert bench.publish(version()).version == 1
    assert bench.tree["m_onnx/1/vendor/code/deep/x.py"] == "one"
    assert not bench.publish(version()).created
    (bench.folder / "code" / "deep" / "x.py").write_text("two")
    assert bench.publish(version()).version == 2
    assert bench.tree["m_onnx/1/vendor/code/deep/x.py"] == "one"


def test_bytecode_that_the_server_leaves_is_no_damage(bench: Bench) -> None:
    bench.publish(bench.version())
    cache = bench.root / "m_onnx" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_text("bytecode")
    entry = bench.publish(bench.version())
    assert (entry.version, entry.created, entry.notes) == (1, False, ())
    (bench.root / "m_onnx" / "1" / "extra.py").write_text("not ours")
    assert bench.publish(bench.version()).notes[0].startswith("version 1 no longer matches its manifest (extra.py)")


def test_a_folder_build_is_no_damage_of_a_program_and_of_nothing_else(bench: Bench) -> None:
    program = replace(bench.version(), manifest={"schema": 1, "format": "libtorch"})
    bench.publish(program)
    made = bench.root / "m_onnx" / "1" / "build" / "deep"
    made.mkdir(parents=True)
    (made / "CMakeCache.txt").write_text("")
    entry = bench.publish(program)
    assert (entry.version, entry.created, entry.notes) == (1, False, ())
    manifest = read_manifest(bench.root, "m_onnx", 1)
    assert manifest is not None
    assert "build/deep/CMakeCache.txt" in corruption(bench.root / "m_onnx" / "1", {**manifest, "format": "onnx"})
