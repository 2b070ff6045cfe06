"""A real server that polls a repository while builds are published into it and killed: no answer is of two builds."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from pipeline.base import model_config
from pipeline.repository.versions import version_numbers
from pipeline.servers.triton import embedded
from tests.integration.conftest import ROOT
from tests.integration.numbered import ENSEMBLE, MEMBERS, publish

_BUILDS = 9
_PAUSE_S = 2.5  # a poll, and the loading of three models, may come in between


def _polling(models: list[str], server_id: str, exit_timeout_s: float) -> list[str]:
    return [
        f"--id={server_id}", "--model-control-mode=poll", "--repository-poll-secs=1", "--disable-auto-complete-config",
        "--exit-on-error=false", f"--exit-timeout-secs={round(exit_timeout_s)}",
    ]  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The repository's first build, served by a server that polls; gives its address."""
    publish(tmp_path, 1)
    monkeypatch.setattr(embedded, "server_flags", _polling)
    names = [*MEMBERS, ENSEMBLE]
    launch = embedded.embedded(tmp_path / "repo", names, log_path=tmp_path / "server.log", start_timeout_s=90)
    with launch as served:
        yield served.server.http_url.removeprefix("http://")


class Client:
    """Asks the ensemble all the time, and keeps count of which builds each answer is of."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[tuple[int, ...]] = Counter()
        self.refusals: Counter[str] = Counter()
        self._url = url

    def ask(self) -> None:
        client = triton_http.InferenceServerClient(self._url)
        tensor = triton_http.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
        try:
            answer = client.infer(ENSEMBLE, [tensor]).as_numpy("y")
            self.answers[tuple(answer[0, 1:].astype(int).tolist())] += 1
        except InferenceServerException as error:
            self.refusals[str(error)] += 1
        finally:
            client.close()


class Reader:
    """Reads the ensemble's configuration and its members', as anybody may: they must fit at every moment."""

    def __init__(self, root: Path) -> None:
        self.wrong: list[str] = []
        self.looks = 0
        self._root = root

    def look(self) -> None:
        text = self._text(ENSEMBLE)
        steps = model_config.parse_text(text, "x").ensemble_scheduling.step
        found = [(step.model_name, step.model_version, self._served(step.model_name)) for step in steps]
        if text == self._text(ENSEMBLE):  # else it moved on while the members were read
            self.looks += 1
            self.wrong += [str(one) for one in found if one[1] not in one[2]]

    def _text(self, name: str) -> str:
        return (self._root / name / "config.pbtxt").read_text()

    def _served(self, name: str) -> list[int]:
        """Of one state of the model's directory, which is another after each swap."""
        while True:
            before = (self._root / name).stat().st_ino
            config = model_config.parse_text(self._text(name), "x")
            served = model_config.served_versions(config, version_numbers(self._root / name))
            if (self._root / name).stat().st_ino == before:
                return served


def _all_the_time(stopping: threading.Event, act: Callable[[], None]) -> threading.Thread:
    def loop() -> None:
        while not stopping.is_set():
            act()
            time.sleep(0.002)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def _publish(folder: Path, build: int, kill_after_s: float | None) -> bool:
    """One build in a process of its own, killed while it publishes; whether it came to its end."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.numbered", str(folder), str(build)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "publishing\n"
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        child.kill()
    status = child.wait(timeout=60)
    child.stdout.close()
    return status == 0


def test_no_answer_is_of_two_builds_while_builds_are_published_and_killed(server: str, tmp_path: Path) -> None:
    client, reader, stopping = Client(server), Reader(tmp_path / "repo"), threading.Event()
    threads = [_all_the_time(stopping, client.ask), _all_the_time(stopping, reader.look)]
    chooser, done = random.Random(), []
    try:
        began = time.monotonic()
        done.append(_publish(tmp_path, 2, None))
        whole_s = time.monotonic() - began
        for build in range(3, _BUILDS + 1):
            killed = chooser.uniform(0, whole_s / 4) if build % 3 else None
            done.append(_publish(tmp_path, build, killed))
            time.sleep(_PAUSE_S)
        publish(tmp_path, _BUILDS + 1)
        deadline = time.monotonic() + 60
        while client.answers[(_BUILDS + 1,) * 3] < 20:
            assert time.monotonic() < deadline, (client.answers, client.refusals)
            time.sleep(0.1)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    print(client.answers, client.refusals, done, reader.looks)
    assert all(len(set(builds)) == 1 for builds in client.answers), client.answers
    assert len(client.answers) >= 3
    assert not all(done)
    assert not reader.wrong
    assert reader.looks > 100
