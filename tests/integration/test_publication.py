"""Publication under SIGKILL, a full disk and a failing one, at its system calls; and builds beside each other.

By default some points of each sweep are tried, others with each seed; PUBLICATION_SWEEP=all tries every one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.base import files, model_config
from pipeline.repository import candidate as candidates
from pipeline.repository import manifest as manifests
from pipeline.repository.manifest import read_manifest
from pipeline.repository.versions import state_dir, version_numbers
from tests.integration.conftest import ROOT
from tests.integration.publisher import NAMES, build
from tests.unit.repository.bench import Bench

_CHANGING = (
    "mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,fsync,write,sendfile,copy_file_range,"
    "ftruncate"
)
_ALL = f"openat,chmod,fchmod,{_CHANGING}"
_EVERY_POINT = os.environ.get("PUBLICATION_SWEEP") == "all"
_SECONDS = 24.0  # of one sweep


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: a sweep waits for thousands of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


class Publisher:
    """The process that forks one publication for each folder."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "publisher.log").open("w+")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.publisher", str(folder / "warm")],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()

    def run(self, folder: Path, *strace: str) -> tuple[int, str]:
        """One publication under strace: how it ended, and what strace wrote."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{folder}\n")
        self._child.stdin.flush()
        pid = int(self._line())
        _await(pid, "State:\tT")
        out = folder / "strace"
        tracer = subprocess.Popen(["strace", "-qq", "-o", str(out), "-p", str(pid), *strace], stderr=subprocess.PIPE)
        try:
            _await(pid, f"TracerPid:\t{tracer.pid}", tracer)
        finally:
            os.kill(pid, signal.SIGCONT)
        ended = int(self._line())
        _, said = tracer.communicate(timeout=60)
        return ended, out.read_text() if out.exists() else said.decode()

    def said(self) -> str:
        """What the last publications told."""
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(timeout=60)
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._log.close()


def _await(pid: int, state: str, tracer: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 30
    while state not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, state
        assert tracer is None or tracer.poll() is None, tracer.communicate()[1].decode()
        time.sleep(0.001)


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    folder = tmp_path_factory.mktemp("publisher")
    (folder / "warm").mkdir()
    publisher = Publisher(folder)
    yield publisher
    publisher.close()


class Place:
    """A repository as the first build left it, and as the second one and the next would, undisturbed."""

    def __init__(self, folder: Path) -> None:
        (folder / "first").mkdir()
        build(folder / "first", 1)
        self._folder = folder
        goal = self.fresh()
        build(goal, 2)
        self.goal = content(goal)
        build(goal, 2)  # removes what the ensemble asked before
        self.next, self.records = content(goal), records(goal)

    def fresh(self) -> Path:
        """The first build's state, in the same folder each time."""
        place = self._folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._folder / "first", place)
        return place


def content(folder: Path) -> dict[str, str]:
    return files.tree_digests(folder / "repo")


def records(folder: Path) -> dict[str, str]:
    """All of the state but the locks."""
    found = files.tree_digests(folder / "repo.state")
    return {name: digest for name, digest in found.items() if "lock" not in name}


def check(folder: Path) -> None:
    """Every model is of one build, whole, with the manifest of just its files, and every ensemble finds its members."""
    root = folder / "repo"
    assert sorted(item.name for item in root.iterdir()) == list(NAMES)
    gates = {}
    for name in NAMES:
        numbers = version_numbers(root / name)
        for number in numbers:
            manifest = read_manifest(root, name, number)
            assert manifest is not None, (name, number)
            assert not manifests.corruption(root / name / str(number), manifest)
            assert manifests.golden_path(root, manifest).read_bytes() == b"golden"
            gates[name] = manifest["gates"]
    b = _config(root, "b")
    assert b.max_batch_size == gates["b"], "gates of one build beside the configuration of another"
    for step in _config(root, "m").ensemble_scheduling.step:
        member = _config(root, step.model_name)
        served = model_config.served_versions(member, version_numbers(root / step.model_name))
        assert step.model_version in served, (step.model_name, step.model_version, served)
    assert gates["m"] <= min(gates["a"], gates["b"]), "a new ensemble over old members"


def _config(root: Path, name: str) -> object:
    return model_config.parse_text((root / name / "config.pbtxt").read_text(), name)


def repaired(place: Place, folder: Path) -> None:
    """The next builds give the same as undisturbed ones, and leave nothing of the other behind."""
    for _ in range(2):
        build(folder, 2)
        check(folder)
    assert content(folder) == place.next
    assert records(folder) == place.records
    for name in ("candidates", "staging"):
        assert list((state_dir(folder / "repo") / name).iterdir()) == []


def points(publisher: Publisher, place: Place, calls: str) -> Iterator[tuple[str, int]]:
    """Which of the calls of a publication shall fail, by name and turn: all, or as many as there is time for."""
    ended, traced = publisher.run(place.fresh(), "-e", f"trace={calls}")
    assert ended == 0, publisher.said()
    turns: Counter[str] = Counter()
    order = []
    for name in re.findall(r"^(\w+)\(", traced, re.MULTILINE):
        turns[name] += 1
        order.append((name, turns[name]))
    assert len(order) > 100, traced
    if not _EVERY_POINT:
        random.Random().shuffle(order)  # over many runs of CI every point has its turn
    deadline = time.monotonic() + _SECONDS
    tried = 0
    for point in order:
        if not _EVERY_POINT and time.monotonic() > deadline:
            break
        tried += 1
        yield point
    print(f"{tried} of {len(order)} points")
    assert tried > 20


def test_killed_at_any_call_it_is_as_it_was_or_new_and_whole(publisher: Publisher, quick: Path) -> None:
    place = Place(quick)
    for name, turn in points(publisher, place, _ALL):
        folder = place.fresh()
        ended, traced = publisher.run(folder, "-e", f"trace={_ALL}", "-e", f"inject={name}:signal=KILL:when={turn}")
        try:
            assert ended == -signal.SIGKILL
            check(folder)
            repaired(place, folder)
        except AssertionError as wrong:
            last = "\n".join(traced.splitlines()[-4:])
            raise AssertionError(f"killed at {name} {turn}: {wrong}\n{last}") from wrong


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_where_any_call_fails_that_is_told_and_the_rest_is_whole(publisher: Publisher, quick: Path, fault: str) -> None:
    place = Place(quick)
    for name, turn in points(publisher, place, _CHANGING):
        folder = place.fresh()
        before = content(folder)
        arguments = ("-e", f"trace={_CHANGING}", "-e", f"inject={name}:error={fault}:when={turn}")
        ended, traced = publisher.run(folder, *arguments)
        try:
            assert ended in (0, 3), publisher.said().splitlines()[-1]
            check(folder)
            if ended == 0:  # what failed did not matter
                assert content(folder) == place.goal
            elif content(folder) == before:
                assert not list((folder / "repo.state").rglob("*.next"))
            repaired(place, folder)
        except AssertionError as wrong:
            failed = next((line for line in traced.splitlines() if "INJECTED" in line), traced)
            raise AssertionError(f"{fault} at {name} {turn}: {wrong}\n{failed}") from wrong


# ---- builds beside each other ---------------------------------------------------------------------------------------

_BUILD = """
import sys, time
from pathlib import Path
from pipeline.repository import candidate
with candidate.opened(Path(sys.argv[1]), sys.argv[2:], run_id="of-another-process") as made:
    (made.path / "left").write_text("x")
    print("open", flush=True)
    time.sleep(600)
"""


def another_build(root: Path, *models: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", _BUILD, str(root), *models], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    return child


def test_a_candidate_lives_as_long_as_its_build(bench: Bench) -> None:
    folder = state_dir(bench.root) / "candidates"
    with another_build(bench.root, "other") as child:
        bench.publish(bench.version())  # of other models: side by side
        assert candidates.collect(bench.root) == 0
        assert (folder / "of-another-process" / "left").is_file()
        child.kill()
        child.wait()
        assert candidates.collect(bench.root) == 1
    assert list(folder.iterdir()) == []


def test_the_next_build_clears_a_dead_ones_candidate(bench: Bench) -> None:
    with another_build(bench.root, "m_onnx") as child:
        child.kill()
        child.wait()
    told: list[str] = []
    with candidates.opened(bench.root, ["m_onnx"], run_id="r", waiting=told.append):
        assert sorted(item.name for item in (state_dir(bench.root) / "candidates").iterdir()) == ["r", "r.lock"]
    assert not told


def test_a_model_that_another_build_is_at_is_waited_for_and_that_is_told(bench: Bench) -> None:
    with another_build(bench.root, "m_onnx") as child:
        told: list[str] = []

        def waiting(holder: str) -> None:
            told.append(holder)
            child.kill()

        with candidates.opened(bench.root, ["m_onnx", "x"], run_id="r", waiting=waiting):
            assert told == [f"process {child.pid}"]
