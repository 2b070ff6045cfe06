"""Notices models that have stopped answering, and heals them.

Triton calls a model READY whose Python stub was killed, and answers each request to it with an error, for ever (core
2.51). A ``load`` of such a model does nothing; ``unload`` and then ``load`` starts it anew. So each ready version is
asked for a real inference at intervals, and a model that does not answer is unloaded and loaded. Models that answer
are never touched.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.serve import probe
from pipeline.serve.known_inputs import Known, KnownInput, known_input

_PROBE_TIMEOUT_S = 30.0
_LOAD_TIMEOUT_S = 300.0
_LONGEST_REST = 63  # rounds between two attempts on a model that no attempt helps
_LEAVE_S = 1.0  # for the thread to end; it may be waiting for a model that loads, and nobody waits for that
_OVERLOADED = 503


@dataclass
class _Patient:
    """What is known of one model.

    Attributes:
        ensemble: it is routed through other models.
        answers: what was seen last.
        streak: rounds in a row that found it not answering, healed or not; what the waiting grows by.
        rest: rounds it is left alone now.
        origin: where its input is from, or why it is not asked.
        last: when and how it failed last.
    """

    probes: int = 0
    failures: int = 0
    heals: int = 0
    ensemble: bool = False
    answers: bool = True
    streak: int = 0
    rest: int = 0
    origin: str = ""
    last: dict[str, str] | None = None


@dataclass
class Watch:
    """Asks every ready version of a server for an inference, round after round.

    Attributes:
        http_url: the server's.
        repository: root of what it serves.
        known: golden samples, where there are some.
        interval_s: from the end of a round to the next.
        directory: where ``watch.log`` and ``watch.json`` are written; the latter is replaced whole after each round.
        tell: told each line of the log.
        probe_timeout_s: a model that answers nobody for so long does not answer.
    """

    http_url: str
    repository: Path
    known: Known
    interval_s: float
    directory: Path
    tell: Callable[[str], None]
    probe_timeout_s: float = _PROBE_TIMEOUT_S
    rounds: int = 0
    _patients: dict[str, _Patient] = field(default_factory=dict)
    _inputs: dict[tuple[str, str], tuple[Any, KnownInput]] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _unreachable: bool = False
    _bug: Exception | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch, in a thread, until the block is left; leaving waits for nothing that takes long."""
        self._write_status()
        thread = threading.Thread(target=self._run, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join(_LEAVE_S)
            self._write_status()

    def check(self) -> None:
        """Raise what ended the watching, which is a bug."""
        if self._bug:
            raise self._bug

    def summary(self) -> str:
        """One line of counts, then one for each model that failed."""
        total = self._total()
        lines = [f"watch: {self.rounds} rounds, {total['probes']} probes; failures {total['failures']}, "
                 f"heals {total['heals']}"]  # fmt: skip
        for name, patient in sorted(self._patients.items()):
            if patient.failures:
                state = "" if patient.answers else "; does not answer now"
                lines.append(f"  {name}: failures {patient.failures}, heals {patient.heals}{state}")
        return "\n".join(lines)

    # ---- rounds

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self.interval_s):
                self._round()
                if not self._stopping.is_set():
                    self.rounds += 1
                    self._write_status()
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self._bug = error

    def _round(self) -> None:
        try:
            for name in self._names():
                if self._stopping.is_set():
                    return
                self._look(name, self._patients[name])
        except probe.NotAnswered as error:
            if not self._unreachable:
                self._say(f"round cut short: {error}")
            self._unreachable = True
            return
        self._unreachable = False

    def _ready(self) -> Mapping[str, Sequence[str]]:
        ready: dict[str, list[str]] = {}
        for row in probe.index(self.http_url, timeout_s=self.probe_timeout_s):
            if row.state == "READY":
                ready.setdefault(row.model, []).append(row.version)
        return ready

    def _names(self) -> list[str]:
        """What is ready, or was until it failed; ensembles after the models they are made of."""
        for name, versions in self._ready().items():
            patient = self._patients.setdefault(name, _Patient())
            patient.ensemble = self._config(name, versions[0]).get("platform") == "ensemble"
        return sorted(self._patients, key=lambda name: (self._patients[name].ensemble, name))

    def _config(self, name: str, version: str) -> dict[str, Any]:
        return probe.config(self.http_url, name, version, timeout_s=self.probe_timeout_s)

    # ---- one model

    def _look(self, name: str, patient: _Patient) -> None:
        if patient.rest:
            patient.rest -= 1
            return
        versions = self._ready().get(name, ())  # of now: healing another model may have changed it
        if not versions and patient.answers:
            return  # somebody unloaded it
        reason = self._failure(name, versions, patient)
        if self._stopping.is_set():
            return
        patient.answers = not reason
        if patient.answers:
            patient.streak = 0
            return
        patient.failures += 1
        patient.streak += 1
        patient.last = {"time": _now(), "text": reason}
        if patient.ensemble and any(not other.answers for other in self._patients.values() if other is not patient):
            if patient.streak == 1:
                self._say(f"{name}: {reason}; left alone until the models it is made of answer")
            return
        self._heal(name, patient, reason)
        patient.rest = min(2 ** (patient.streak - 1) - 1, _LONGEST_REST)
        if patient.rest:
            self._say(f"{name}: next look in {(patient.rest + 1) * self.interval_s:g} s")

    def _failure(self, name: str, versions: Sequence[str], patient: _Patient) -> str:
        """Why a model does not answer; empty when every instance of every version does."""
        if not versions:
            return "it is not loaded"
        for version in versions:
            config = self._config(name, version)
            if config.get("model_transaction_policy", {}).get("decoupled"):
                patient.origin = "not asked: a decoupled model answers by stream"
                continue
            asked = self._known_input(name, version, config)
            patient.origin = asked.origin
            for _ in range(_instances(config)):  # requests one after the other go to one instance after the other
                patient.probes += 1
                if reason := self._ask(name, version, asked, sequence="sequence_batching" in config):
                    return f"version {version}: {reason}"
        return ""

    def _known_input(self, name: str, version: str, config: Mapping[str, Any]) -> KnownInput:
        specs = probe.inputs_of(self.http_url, name, version, timeout_s=self.probe_timeout_s)
        kept = self._inputs.get((name, version))
        if kept is None or kept[0] != (specs, config):
            asked = known_input(self.repository, name, version, specs, config, self.known)
            kept = self._inputs[name, version] = ((specs, config), asked)
        return kept[1]

    def _ask(self, name: str, version: str, asked: KnownInput, *, sequence: bool) -> str:
        """Why there was no answer; a refusal of zeros, or for want of room in the queue, is an answer."""
        place = {"sequence_id": random.getrandbits(62) + 1, "sequence_start": True, "sequence_end": True}
        timeout_s = self.probe_timeout_s
        before = probe.answered(self.http_url, name, version, timeout_s=timeout_s)
        try:
            refusal = probe.infer(
                self.http_url, name, version, asked.inputs, asked.data,
                parameters=place if sequence else None, timeout_s=timeout_s,
            )  # fmt: skip
        except probe.TooLate:
            if probe.answered(self.http_url, name, version, timeout_s=timeout_s) > before:
                self._say(f"{name} version {version}: busy, no answer within {timeout_s:g} s while others got theirs")
                return ""
            return f"no answer within {timeout_s:g} s"
        if refusal is None:
            return ""
        broken = refusal.dead or (asked.good and refusal.status >= 500 and refusal.status != _OVERLOADED)
        return _plain(refusal.text) if broken else ""

    def _heal(self, name: str, patient: _Patient, reason: str) -> None:
        self._say(f"{name}: {reason}; unloading and loading it")
        started = time.monotonic()
        probe.control(self.http_url, "unload", name, timeout_s=self.probe_timeout_s)
        try:
            refusal = probe.control(self.http_url, "load", name, timeout_s=_LOAD_TIMEOUT_S)
        except probe.TooLate:
            self._say(f"{name}: not loaded within {_LOAD_TIMEOUT_S:g} s")
            return
        still = _plain(refusal.text) if refusal else self._failure(name, self._ready().get(name, ()), patient)
        if still:
            self._say(f"{name}: still does not answer: {still}")
            return
        patient.answers = True
        patient.heals += 1
        self._say(f"{name}: answers again, after {time.monotonic() - started:.1f} s (heal {patient.heals})")

    # ---- what is told

    def _say(self, text: str) -> None:
        if self._stopping.is_set():  # what fails while the server stops is no failure
            return
        line = f"{_now()} {' '.join(text.split())}"
        with (self.directory / "watch.log").open("a") as log:
            log.write(line + "\n")
        self.tell(line)

    def _total(self) -> dict[str, int]:
        rows = list(self._patients.values())
        return {
            "probes": sum(row.probes for row in rows),
            "failures": sum(row.failures for row in rows),
            "heals": sum(row.heals for row in rows),
        }

    def _write_status(self) -> None:
        models = {
            name: {
                "answers": patient.answers,
                "input": patient.origin,
                "probes": patient.probes,
                "failures": patient.failures,
                "heals": patient.heals,
                "last_failure": patient.last,
            }
            for name, patient in sorted(self._patients.items())
        }
        status = {
            "updated": _now(),
            "interval_s": self.interval_s,
            "rounds": self.rounds,
            **self._total(),
            "models": models,
        }
        files.write_atomic(self.directory / "watch.json", json.dumps(status, indent=2) + "\n")


def _instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group", ())
    return max(1, sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", ()))) for group in groups))


def _plain(text: str) -> str:
    """Triton's words out of its JSON."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
