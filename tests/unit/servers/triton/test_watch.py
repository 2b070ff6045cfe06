"""What the watcher takes for a failure, and what it does about it, against a server that is made up here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.servers.triton import probe
from pipeline.servers.triton.client.messages import IndexRow
from pipeline.servers.triton.probe import InputSpec, NotAnswered, Refusal, TooLate
from pipeline.servers.triton.watch import Watch, _instances

DEAD = Refusal(500, '{"error":"Stub process \'a_0_0\' is not healthy."}')
Answer = Callable[[str], Refusal | None]


class Server:
    """Models that are ready, and how each answers."""

    def __init__(self, *models: str) -> None:
        self.ready = dict.fromkeys(models, "1")
        self.reasons: dict[str, str] = {}
        self.answers: dict[str, Answer] = {}
        self.configs: dict[str, dict] = {}
        self.success = 0
        self.sent: list[tuple[str, dict | None]] = []
        self.actions: list[tuple[str, str]] = []
        self.loads: Callable[[str], Refusal | None] = lambda model: None

    def index(self, url: str, **_: float) -> list[IndexRow]:
        ready = [IndexRow(name=name, version=version, state="READY") for name, version in self.ready.items()]
        return ready + [
            IndexRow(name=name, version="1", state="UNAVAILABLE", reason=reason)
            for name, reason in self.reasons.items()
            if name not in self.ready
        ]

    def infer(self, url: str, model: str, version: str, inputs: object, data: object, *, parameters: dict | None, **_):
        self.sent.append((model, parameters))
        return self.answers.get(model, lambda name: None)(model)

    def control(self, url: str, action: str, model: str, **_: float) -> Refusal | None:
        self.actions.append((action, model))
        if action == "unload":
            self.ready.pop(model, None)
            self.reasons[model] = "unloaded"
            return None
        if refusal := self.loads(model):
            return refusal
        self.ready[model] = "1"
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server("a", "b")
    spec = InputSpec(name="x", datatype="FP32", shape=(1, 3))
    monkeypatch.setattr(probe, "index", server.index)
    monkeypatch.setattr(probe, "infer", server.infer)
    monkeypatch.setattr(probe, "control", server.control)
    monkeypatch.setattr(probe, "inputs_of", lambda *_, **__: [spec])
    monkeypatch.setattr(probe, "config", lambda url, name, version, **_: server.configs.get(name, {}))
    monkeypatch.setattr(probe, "answered", lambda *_, **__: server.success)
    return server


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(
        http_url="http://h", repositories=[tmp_path], known=lambda model, version: None, interval_s=10.0,
        directory=tmp_path, tell=lambda line: None,
    )  # fmt: skip


def test_models_that_answer_are_left_alone(server: Server, watch: Watch) -> None:
    for refusal in (
        None, Refusal(400, "zeros are no image"), Refusal(500, "zeros divide by zero"), Refusal(503, "queue is full"),
    ):  # fmt: skip
        server.answers["a"] = lambda name, refusal=refusal: refusal
        watch._round()
    assert server.actions == []
    assert watch.summary() == "watch: 0 rounds, 8 probes; failures 0, heals 0"


def test_an_error_on_an_input_known_to_be_good_is_a_failure(server: Server, watch: Watch) -> None:
    watch.known = lambda model, version: {"x": np.ones((1, 3), np.float32)}
    server.answers["a"] = lambda name: Refusal(503, "queue is full")
    watch._round()
    server.answers["a"] = lambda name: Refusal(400, "not any more")
    watch._round()
    assert server.actions == []
    server.answers["a"] = lambda name: Refusal(500, '{"error":"out of memory"}')
    watch._round()
    assert server.actions == [("unload", "a"), ("load", "a")]
    assert watch._patients["a"].last["text"] == "version 1: out of memory"


def test_a_dead_process_is_unloaded_and_loaded_and_counted(server: Server, watch: Watch, tmp_path: Path) -> None:
    server.answers["a"] = lambda name: DEAD if len(server.actions) < 2 else None
    watch._round()
    watch._write_status()
    assert server.actions == [("unload", "a"), ("load", "a")]
    status = json.loads((tmp_path / "watch.json").read_text())
    assert (status["failures"], status["heals"], status["models"]["a"]["answers"]) == (1, 1, True)
    assert status["models"]["a"]["input"] == "zeros"
    assert status["models"]["b"]["failures"] == 0
    first, second = (tmp_path / "watch.log").read_text().splitlines()
    assert first.endswith("a: version 1: Stub process 'a_0_0' is not healthy.; unloading and loading it")
    assert "a: answers again, after 0.0 s (heal 1)" in second
    assert watch.summary().endswith("  a: failures 1, heals 1")


def test_attempts_that_do_not_help_become_rare(server: Server, watch: Watch) -> None:
    server.answers["a"] = lambda name: DEAD
    attempts = []
    for number in range(70):
        before = len(server.actions)
        watch._round()
        if len(server.actions) > before:
            attempts.append(number)
    assert attempts == [0, 1, 3, 7, 15, 31, 63]
    assert watch.summary().endswith("a: failures 7, heals 0; does not answer now")
    server.answers["a"] = lambda name: None
    for _ in range(64):
        watch._round()
    assert (watch._patients["a"].streak, watch._patients["a"].answers) == (0, True)
    server.answers["a"] = lambda name: DEAD
    watch._round()
    watch._round()
    assert len(server.actions) == 2 * (7 + 2)


def test_the_longest_rest_is_bounded(server: Server, watch: Watch) -> None:
    server.answers["a"] = lambda name: DEAD
    watch._round()
    watch._patients["a"].streak = 50
    watch._round()
    assert watch._patients["a"].rest == 63


def test_a_model_that_does_not_load_is_tried_again(server: Server, watch: Watch) -> None:
    server.answers["a"] = lambda name: DEAD
    server.loads = lambda model: Refusal(400, '{"error":"failed to load"}')
    told: list[str] = []
    watch.tell = told.append
    watch._round()
    assert "a" not in server.ready
    assert told[-1].endswith("a: still does not answer: failed to load")
    server.loads, server.answers = (lambda model: None), {}
    watch._round()
    assert "a" in server.ready
    assert watch._patients["a"].heals == 1


def test_a_model_that_is_busy_with_others_is_left_alone(server: Server, watch: Watch) -> None:
    def late(name: str) -> None:
        server.success += busy
        raise TooLate("no answer in time")

    server.answers["a"] = late
    busy = 1
    watch._round()
    assert server.actions == []
    busy = 0
    watch._round()
    assert server.actions == [("unload", "a"), ("load", "a")]


def _of(*parts: str) -> dict:
    return {"platform": "ensemble", "ensemble_scheduling": {"step": [{"model_name": name} for name in parts]}}


def test_an_ensemble_waits_for_its_parts(server: Server, watch: Watch) -> None:
    server.ready = {"0_whole": "1", "part": "1"}
    server.configs["0_whole"] = _of("part")
    server.answers = {"0_whole": lambda name: DEAD, "part": lambda name: DEAD}
    watch._round()
    assert server.actions == [("unload", "part"), ("load", "part")]
    assert [name for name, _ in server.sent] == ["part", "part", "0_whole"]
    server.answers["part"] = lambda name: None
    watch._round()
    assert server.actions[2:] == [("unload", "0_whole"), ("load", "0_whole")]


def test_an_ensemble_waits_for_no_other_model(server: Server, watch: Watch) -> None:
    server.ready = {"0_whole": "1", "inner": "1", "part": "1", "stranger": "1"}
    server.configs = {"0_whole": _of("inner"), "inner": _of("part")}
    server.answers = {name: lambda name: DEAD for name in ("0_whole", "inner", "stranger")}

    def loads(model: str) -> None:
        if model != "stranger":
            del server.answers[model]

    server.loads = loads
    told: list[str] = []
    watch.tell = told.append
    watch._round()
    assert [name for action, name in server.actions if action == "load"] == ["stranger", "inner", "0_whole"]
    assert not any("left alone" in line for line in told)


def test_an_ensemble_waits_for_what_is_deep_in_it_and_the_log_names_it(server: Server, watch: Watch) -> None:
    server.ready = {"0_whole": "1", "inner": "1", "part": "1"}
    server.configs = {"0_whole": _of("inner"), "inner": _of("part")}
    server.answers = {"0_whole": lambda name: DEAD, "part": lambda name: DEAD}
    told: list[str] = []
    watch.tell = told.append
    watch._round()
    assert [name for _, name in server.actions] == ["part", "part"]
    assert told[-1].endswith("; left alone until part can be used again")


def test_a_failing_model_that_somebody_unloads_is_left_alone(server: Server, watch: Watch) -> None:
    server.answers["a"] = lambda name: DEAD
    for _ in range(2):
        watch._round()
    assert watch._patients["a"].streak == 2
    server.control("", "unload", "a")
    done = list(server.actions)
    for _ in range(3):
        watch._round()
    assert server.actions == done
    assert (watch._patients["a"].streak, watch._patients["a"].origin) == (0, "not asked: it is unloaded")
    server.control("", "load", "a")
    watch._round()
    assert server.actions[len(done) + 1 :] == [("unload", "a"), ("load", "a")]


def test_a_failing_model_whose_load_somebody_gave_up_is_left_alone(server: Server, watch: Watch) -> None:
    def refused(model: str) -> Refusal:
        server.reasons[model] = "Internal: no such file"
        return Refusal(400, "failed to load")

    server.answers["a"], server.loads = (lambda name: DEAD), refused
    watch._round()
    server.reasons["a"] = "unloaded"
    watch._round()
    assert server.actions == [("unload", "a"), ("load", "a")]


def test_one_model_that_cannot_be_asked_does_not_stop_the_others(
    server: Server, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(url: str, name: str, version: str, **_: float) -> dict:
        if name == "a":
            raise NotAnswered("h/a/config: HTTP Error 400")
        return {}

    monkeypatch.setattr(probe, "config", config)
    server.answers["b"] = lambda name: DEAD if len(server.actions) < 2 else None
    told: list[str] = []
    watch.tell = told.append
    assert watch._round()
    assert watch._round()
    assert server.actions == [("unload", "b"), ("load", "b")]
    assert watch._patients["a"].origin == "not asked: h/a/config: HTTP Error 400"
    assert sum("not asked" in line for line in told) == 1


def test_files_that_cannot_be_written_are_told_once_and_end_nothing(
    server: Server, watch: Watch, tmp_path: Path
) -> None:
    for name in ("watch.json", "watch.log"):
        (tmp_path / name).mkdir()
    told: list[str] = []
    watch.tell, watch.interval_s = told.append, 0.001
    server.answers["a"] = lambda name: DEAD if len(server.actions) < 4 else None
    with watch.running():
        deadline = time.monotonic() + 10
        while watch.rounds < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        watch.check()
    assert watch.rounds >= 3
    assert watch._patients["a"].heals == 1
    assert sum("watch.json cannot be written: " in line for line in told) == 1
    assert sum("watch.log cannot be written: " in line for line in told) == 1
    assert any("a: answers again" in line for line in told)


def test_what_somebody_unloaded_is_not_loaded(server: Server, watch: Watch) -> None:
    watch._round()
    del server.ready["a"]
    watch._round()
    assert server.actions == []


def test_a_server_that_is_gone_is_told_once(
    server: Server, watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    watch.tell = told.append

    def gone(url: str, **_: float) -> None:
        raise NotAnswered("refused")

    with monkeypatch.context() as patch:
        patch.setattr(probe, "index", gone)
        assert not watch._round()
        assert not watch._round()
    assert len(told) == 1
    watch._write_status()
    status = json.loads((tmp_path / "watch.json").read_text())
    assert (status["reachable"], status["rounds_cut_short"]) == (False, 2)
    assert "rounds cut short, because the server did not answer: 2; it does not answer since" in watch.summary()
    assert watch._round()
    assert server.actions == []
    assert len(told) == 2
    assert f"the server answers again; it did not since {status['since']}" in told[1]
    watch._write_status()
    assert json.loads((tmp_path / "watch.json").read_text())["reachable"] is True


def test_only_whole_rounds_are_counted(server: Server, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(url: str, **_: float) -> None:
        raise NotAnswered("refused")

    monkeypatch.setattr(probe, "index", gone)
    watch.interval_s = 0.001
    with watch.running():
        deadline = time.monotonic() + 10
        while watch.cut_short < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert watch.cut_short >= 2
    assert watch.rounds == 0


def test_sequences_and_streams(server: Server, watch: Watch) -> None:
    server.configs["a"] = {"sequence_batching": {}}
    server.configs["b"] = {"model_transaction_policy": {"decoupled": True}}
    watch._round()
    ((name, parameters),) = server.sent
    assert name == "a"
    assert parameters["sequence_start"] is parameters["sequence_end"] is True
    assert parameters["sequence_id"] > 0
    assert watch._patients["b"].origin.startswith("not asked")


def test_every_instance_is_asked() -> None:
    assert _instances({}) == 1
    assert _instances({"instance_group": [{"count": 2, "gpus": []}, {"count": 1, "gpus": [0, 1]}]}) == 4


def test_a_bug_in_the_thread_is_raised(server: Server, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise AttributeError("oops")

    watch.interval_s = 0.001
    monkeypatch.setattr(watch, "_round", broken)
    with watch.running():
        deadline = time.monotonic() + 10
        while watch._bug is None and time.monotonic() < deadline:
            time.sleep(0.005)
        with pytest.raises(AttributeError, match="oops"):
            watch.check()
