"""What a second build does: nothing that was done already, and nothing half."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipeline.base import files
from pipeline.repository.manifest import read_manifest
from tests.integration.conftest import CONFIGS, ROOT, Built, run

Build = Callable[[str], Built]


def test_an_unchanged_rebuild_makes_no_version_and_does_no_work(built: Build, tmp_path: Path) -> None:
    copy = built("resnet").copy(tmp_path / "copy")
    again = copy.again("--no-serve")
    assert again.exit_code == 0, again.output
    assert {(row["version"], row["cached"]) for row in again.report["variants"]} == {(1, True)}
    assert not (again.repository / "resnet_onnx" / "2").exists()


@pytest.mark.parametrize("command", [["plan"], ["build", "--no-serve"], ["--help"], ["build", "--help"]])
def test_cheap_commands_import_no_heavy_library(built: Build, command: list[str]) -> None:
    done = built("resnet")
    arguments = [*command]
    if "--help" not in command:
        arguments += [str(done.config), "--repository", str(done.repository), "--work-dir", str(done.work_dir)]
    script = (
        "import sys; from pipeline.__main__ import main; sys.argv = ['pipeline', *sys.argv[1:]]; code = main();"
        "heavy = {'torch', 'tensorflow', 'onnxruntime', 'onnx', 'sklearn', 'torchvision'} & set(sys.modules);"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_same_inputs_give_the_same_bytes(built: Build, tmp_path: Path) -> None:
    first = built("from_onnx")
    second = run(first.config, tmp_path, ["--no-serve"], env={"PYTHONHASHSEED": "7"})
    assert second.exit_code == 0, second.output
    one, other = _emitted(first), _emitted(second)
    engine = "digits_trt_fp16/1/model_sm80_sm89.engine"  # TensorRT gives other bytes each time
    assert one.keys() == other.keys() >= {engine, f"{engine}.json"}
    assert {name for name in one if one[name] != other[name]} <= {engine, f"{engine}.json"}
    sidecars = [json.loads((built.rtx_repository / f"{engine}.json").read_text()) for built in (first, second)]
    assert sidecars[0]["identity"] == sidecars[1]["identity"]


def _emitted(done: Built) -> dict[str, str]:
    return {**files.tree_digests(done.repository), **files.tree_digests(done.rtx_repository)}


def test_an_engine_that_is_built_again_from_the_same_makes_no_new_version(built: Build, tmp_path: Path) -> None:
    copy = built("from_onnx").copy(tmp_path / "copy")
    before = _emitted(copy)
    files.remove_tree(copy.work_dir / "store")
    again = copy.again("--no-serve")
    assert again.exit_code == 0, again.output
    engine = again.variant("digits_trt_fp16")
    assert (engine["version"], engine["cached"]) == (1, False)
    assert _emitted(copy) == before
    assert engine["sha256"] == files.sha256_file(Path(engine["path"]) / "model_sm80_sm89.engine")


def test_a_corrupted_cache_entry_is_rebuilt_and_reported(built: Build, tmp_path: Path) -> None:
    copy = built("text_classifier").copy(tmp_path / "copy")
    exported = read_manifest(copy.repository, "text_classifier_onnx", 1)
    assert exported is not None
    entries = (copy.work_dir / "store" / "entries").glob("*/model.onnx")
    (victim,) = (path for path in entries if files.sha256_file(path) == exported["sha256"])
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)
    again = copy.again("--no-serve")
    assert again.exit_code == 0, again.output
    assert "model.onnx does not match its digest" in again.output
    notes = again.variant("text_classifier_onnx")["notes"]
    assert any("was run again: model.onnx does not match its digest" in note for note in notes)
    assert again.variant("text_classifier_onnx")["version"] == 1  # the same bytes came out


def _start(config: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    arguments = ["--repository", str(folder / "repository"), "--work-dir", str(folder / "work"), "--no-serve", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "build", str(config), *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _of(model: str, digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.startswith(f"{model}/")}


def test_a_build_killed_at_many_points_leaves_the_old_or_the_new_whole(
    built: Build, tmp_path: Path, other_digits: Path
) -> None:
    """SIGKILL after random delays while a second, different version is being built and published."""
    old = built("from_onnx").copy(tmp_path / "old")
    before = files.tree_digests(old.repository)
    change = ["--set", f"source.onnx.file={other_digits}", "--set", "triton.max_batch_size=4"]
    # Not the engine, whose bytes are others each time.
    change += [word for key in ("onnx", "onnx_int8", "onnx_two_instances") for word in ("--variant", key)]
    goal = old.copy(tmp_path / "goal").again("--no-serve", *change)
    assert goal.exit_code == 0, goal.output
    after = files.tree_digests(goal.repository)
    assert {"digits_onnx/1/model.onnx", "digits_onnx/2/model.onnx"} <= set(after)
    began = time.monotonic()
    assert old.copy(tmp_path / "timed").again("--no-serve", *change).exit_code == 0
    whole_s = time.monotonic() - began
    states = []
    chooser = random.Random(0)
    for attempt in range(8):
        copy = old.copy(tmp_path / f"attempt{attempt}")
        child = _start(copy.config, copy.folder, *change)
        time.sleep(whole_s * chooser.uniform(0.3, 1.0))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        found = files.tree_digests(copy.repository)
        for model in {name.partition("/")[0] for name in before}:
            assert _of(model, found) in (_of(model, before), _of(model, after))
        states.append(found == after)
        finished = copy.again("--no-serve", *change)
        assert finished.exit_code == 0, finished.output
        assert files.tree_digests(finished.repository) == after
    assert not all(states)  # at least one was killed before it was done


def test_two_builds_at_once_into_one_repository(tmp_path: Path) -> None:
    children = [_start(CONFIGS / "from_onnx.yaml", tmp_path) for _ in range(2)]
    assert [child.wait(timeout=300) for child in children] == [0, 0]
    done = run(CONFIGS / "from_onnx.yaml", tmp_path, ["--no-serve"])
    assert [(row["version"], row["cached"]) for row in done.report["variants"]] == [(1, True)] * len(
        done.report["variants"]
    )


def test_a_full_disk_is_said_and_leaves_the_repository_as_it_was(built: Build, tmp_path: Path) -> None:
    """The work directory stands on a real, full file system: a 64 kB tmpfs in a mount namespace of its own."""
    copy = built("from_onnx").copy(tmp_path / "copy")
    before = files.tree_digests(copy.repository)
    small = tmp_path / "small"
    small.mkdir()
    command = (
        f"mount -t tmpfs -o size=64k tmpfs {small} && exec {sys.executable} -m pipeline build {copy.config} --no-serve "
        f"--repository {copy.repository} --work-dir {small}"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no space left on the disk" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert files.tree_digests(copy.repository) == before
