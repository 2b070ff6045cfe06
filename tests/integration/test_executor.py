"""Steps in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.base.errors import StageError
from pipeline.base.step import GIB, Outcome, Step, Task
from pipeline.build.executors import local
from pipeline.build.executors.local import Local

Run = Callable[..., Future[Outcome]]


def task(folder: Path, function: str, cores: int | None = 1, memory_bytes: int = 1 << 20, **arguments: Any) -> Task:
    out = folder / f"{function}.{time.monotonic_ns()}"
    out.mkdir()
    step = Step(
        name=f"{function}[m]",
        function=f"tests.integration.executor_work:{function}",
        arguments=arguments,
        cores=cores,
        memory_bytes=memory_bytes,
    )
    return Task(step=step, upstream={}, out_dir=out, partial_dir=folder / "partial", log_path=folder / "m.log")


@pytest.fixture
def executor() -> Iterator[Local]:
    with Local(rows=2, cores=2) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


def silent(message: str, fraction: float | None) -> None:
    """Progress that nobody watches."""


def test_two_steps_run_side_by_side_and_no_more_than_there_are_cores(
    executor: Local, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    two = [task(tmp_path, "meet", place=str(place), count=2, within_s=30.0) for _ in range(2)]
    assert [done.values["met"] for done in pool.map(lambda one: executor.run(one, silent), two)] == [2, 2]
    three = [task(tmp_path, "alone", place=str(tmp_path / "place3")) for _ in range(3)]
    (tmp_path / "place3").mkdir()
    assert max(done.values["others"] for done in pool.map(lambda one: executor.run(one, silent), three)) <= 1


@pytest.mark.parametrize("needs", [{"cores": None}, {"memory_bytes": 1 << 50}])
def test_a_step_that_takes_all_cores_or_all_memory_runs_alone(
    executor: Local, pool: ThreadPoolExecutor, tmp_path: Path, needs: dict[str, Any]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    tasks = [task(tmp_path, "alone", place=str(place), **needs) for _ in range(3)]
    assert [done.values["others"] for done in pool.map(lambda one: executor.run(one, silent), tasks)] == [0, 0, 0]


def test_what_a_step_says_goes_to_its_log_and_what_it_makes_comes_back(
    executor: Local, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, float | None]] = []
    one = task(tmp_path, "tell", text="x")
    made = executor.run(one, lambda message, fraction: told.append((message, fraction)))
    assert made == Outcome(file="model.bin", notes=("a note",), values={"threads": "1"})
    assert (one.out_dir / "model.bin").read_text() == "x"
    assert told == [("", None), ("half", 0.5)]  # first told when it starts
    assert {"from Python", "an error line", "from C"} <= set(one.log_path.read_text().splitlines())
    assert capfd.readouterr() == ("", "")


def test_a_step_that_takes_all_cores_keeps_the_libraries_own_number_of_threads(
    executor: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert executor.run(task(tmp_path, "tell", cores=None, text=""), silent).values == {"threads": ""}


def test_a_failure_comes_back_whole(executor: Local, tmp_path: Path) -> None:
    one = task(tmp_path, "refuse")
    with pytest.raises(StageError, match="export: no") as caught:
        executor.run(one, silent)
    assert (caught.value.found, caught.value.where, caught.value.hint) == ("this", "m.yaml:1:1", "that")
    assert "raise StageError" in one.log_path.read_text()


def test_a_bug_is_no_failure_that_a_person_can_act_on(executor: Local, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        executor.run(task(tmp_path, "bug"), silent)


def test_a_dead_process_is_a_failure_with_its_last_words_and_others_go_on(
    executor: Local, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    dead = pool.submit(executor.run, task(tmp_path, "die"), silent)
    other = task(tmp_path, "tell", text="x")
    assert pool.submit(executor.run, other, silent).result().file == "model.bin"
    with pytest.raises(StageError, match="its process died") as caught:
        dead.result()
    assert "exit status -9" in caught.value.found
    assert "last words" in caught.value.found
    assert executor.run(task(tmp_path, "tell", text="y"), silent).file == "model.bin"  # its room is free again


def test_stopping_ends_what_runs_and_what_waits_and_their_children(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    executor = Local(rows=1, cores=1)
    pids = tmp_path / "pids"
    running = pool.submit(executor.run, task(tmp_path, "linger", pids=str(pids)), silent)
    waiting = pool.submit(executor.run, task(tmp_path, "tell", text="x"), silent)
    deadline = time.monotonic() + 60
    while not (pids.is_file() and pids.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    processes = [int(pid) for pid in pids.read_text().split()]
    executor.stop()
    for future in (running, waiting):
        with pytest.raises(local.Stopped):
            future.result(timeout=30)
    assert not [pid for pid in processes if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    with pytest.raises(local.Stopped):
        executor.run(task(tmp_path, "tell", text="x"), silent)


def test_a_small_step_does_not_overtake_a_large_one_for_ever(
    executor: Local, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    seen: list[str] = []

    def run(name: str, memory_bytes: int) -> None:
        place = tmp_path / name
        place.mkdir()
        one = task(tmp_path, "alone", place=str(place), memory_bytes=memory_bytes)
        executor.run(one, lambda message, fraction: seen.append(name))
        seen.append(f"{name} ended")

    whole = executor._room.memory_bytes
    futures = []
    for name, memory_bytes in (("first", whole - GIB // 2), ("large", whole - GIB // 2), ("small", 1)):
        futures.append(pool.submit(run, name, memory_bytes))
        time.sleep(0.05)
    for future in futures:
        future.result()
    assert seen[:2] == ["first", "first ended"]  # there was room for the small one beside the first, all the time
