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
from pathlib import Path
from typing import Any

from pipeline.servers.triton import probe
from pipeline.servers.triton.client.messages import IndexRow
from pipeline.servers.triton.journal import Journal, now
from pipeline.servers.triton.known_inputs import Known, KnownInput, known_input
from pipeline.servers.triton.models import home

_PROBE_TIMEOUT_S = 30.0
_LOAD_TIMEOUT_S = 300.0
_LONGEST_REST = 63  # rounds between two attempts on a model that no attempt helps
_LEAVE_S = 1.0  # for the thread to end; it may be waiting for a model that loads, and nobody waits for that
_OVERLOADED = 503


class _NoServer(Exception):  # noqa: N818 - a state, not an error
    """The server does not tell which models it has."""


@dataclass
class _Patient:
    """What is known of one model.

    Attributes:
        parts: models that an ensemble names as its steps; empty for any other model.
        answers: what was seen last.
        streak: rounds in a row that found it not answering, healed or not; what the waiting grows by.
        rest: rounds it is left alone now.
        origin: where its input is from, or why it is not asked.
        last: when and how it failed last.
        unloaded_here: the watch has unloaded it, and it is not loaded again; else that was somebody's wish.
    """

    probes: int = 0
    failures: int = 0
    heals: int = 0
    parts: tuple[str, ...] = ()
    answers: bool = True
    streak: int = 0
    rest: int = 0
    origin: str = ""
    last: dict[str, str] | None = None
    unloaded_here: bool = False


@dataclass
class Watch:
    """Asks every ready version of a server for an inference, round after round.

    Attributes:
        http_url: the server's.
        repositories: roots of what it serves.
        known: golden samples, where there are some.
        interval_s: from the end of a round to the next.
        directory: where ``watch.log`` and ``watch.json`` are written; the latter is replaced whole after each round.
        tell: told each line of the log.
        probe_timeout_s: a model that answers nobody for so long does not answer.
        rounds: those in which every model had its turn.
        cut_short: those that the server itself ended, by not answering.
    """

    http_url: str
    repositories: Sequence[Path]
    known: Known
    interval_s: float
    directory: Path
    tell: Callable[[str], None]
    probe_timeout_s: float = _PROBE_TIMEOUT_S
    rounds: int = 0
    cut_short: int = 0
    _patients: dict[str, _Patient] = field(default_factory=dict)
    _inputs: dict[tuple[str, str], tuple[Any, KnownInput]] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _reachable: bool = True
    _since: str = field(default_factory=now)
    _bug: Exception | None = None
    _journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self._journal = Journal(self.directory, lambda line: self.tell(line))

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
        if self.cut_short:
            state = "" if self._reachable else f"; it does not answer since {self._since}"
            lines.append(f"  rounds cut short, because the server did not answer: {self.cut_short}{state}")
        for name, patient in sorted(self._patients.items()):
            if patient.failures:
                state = "" if patient.answers else "; does not answer now"
                lines.append(f"  {name}: failures {patient.failures}, heals {patient.heals}{state}")
        return "\n".join(lines)

    # ---- rounds

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self.interval_s):
                if self._round():
                    self.rounds += 1
                if not self._stopping.is_set():
                    self._write_status()
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self._bug = error

    def _round(self) -> bool:
        """Give every model its turn; False when the server or the end of the watching cut that short."""
        try:
            for name in self._names():
                if self._stopping.is_set():
                    return False
                patient = self._patients[name]
                with self._excused(name, patient):
                    self._look(name, patient)
        except _NoServer as error:
            if not self._stopping.is_set():
                self.cut_short += 1
                self._reached(False, f"round cut short: {error}")
            return False
        self._reached(True, f"the server answers again; it did not since {self._since}")
        return True

    def _reached(self, reachable: bool, text: str) -> None:
        if reachable != self._reachable:
            self._reachable, self._since = reachable, now()
            self._say(text)

    @contextlib.contextmanager
    def _excused(self, name: str, patient: _Patient) -> Iterator[None]:
        """A model that cannot be asked loses its own turn, and takes nobody else's."""
        before = patient.origin
        try:
            yield
        except probe.NotAnswered as error:
            patient.origin = f"not asked: {error}"
            if patient.origin != before:
                self._say(f"{name}: {patient.origin}")

    def _index(self) -> Mapping[str, Sequence[IndexRow]]:
        """What the server says of each model."""
        try:
            rows = probe.index(self.http_url, timeout_s=self.probe_timeout_s)
        except probe.NotAnswered as error:
            raise _NoServer(str(error)) from error
        models: dict[str, list[IndexRow]] = {}
        for row in rows:
            models.setdefault(row.name, []).append(row)
        return models

    def _names(self) -> list[str]:
        """What is ready, or was until it failed; ensembles after the models they are made of."""
        for name, rows in self._index().items():
            if versions := _ready(rows):
                patient = self._patients.setdefault(name, _Patient())
                with self._excused(name, patient):
                    steps = self._config(name, versions[0]).get("ensemble_scheduling", {}).get("step", ())
                    patient.parts = tuple(step["model_name"] for step in steps)
        return sorted(self._patients, key=lambda name: (len(self._parts(name)), name))

    def _parts(self, name: str) -> set[str]:
        """All models that an ensemble is made of, those of ensembles in it too."""
        parts: set[str] = set()
        left = [name]
        while left:
            patient = self._patients.get(left.pop())
            new = set(patient.parts) - parts if patient else set()
            parts |= new
            left += new
        return parts

    def _config(self, name: str, version: str) -> dict[str, Any]:
        return probe.config(self.http_url, name, version, timeout_s=self.probe_timeout_s)

    # ---- one model

    def _look(self, name: str, patient: _Patient) -> None:
        models = self._index()  # of now: healing another model may have changed it
        rows = models.get(name, ())
        patient.unloaded_here = patient.unloaded_here and _unloaded(rows)
        if _unloaded(rows) and not patient.unloaded_here:  # somebody wants it so
            patient.answers, patient.streak, patient.rest, patient.origin = True, 0, 0, "not asked: it is unloaded"
            return
        if patient.rest:
            patient.rest -= 1
            return
        versions = _ready(rows)
        if not versions and patient.answers:
            return  # somebody loads it just now, or tried to
        reason = self._failure(name, versions, patient)
        if self._stopping.is_set():
            return
        patient.answers = not reason
        if patient.answers:
            patient.streak = 0
            return
        patient.failures += 1
        patient.streak += 1
        patient.last = {"time": now(), "text": reason}
        if waits_for := self._down(self._parts(name), models):
            if patient.streak == 1:
                self._say(f"{name}: {reason}; left alone until {', '.join(waits_for)} can be used again")
            return
        self._heal(name, patient, reason)
        patient.rest = min(2 ** (patient.streak - 1) - 1, _LONGEST_REST)
        if patient.rest:
            self._say(f"{name}: next look in {(patient.rest + 1) * self.interval_s:g} s")

    def _down(self, parts: set[str], models: Mapping[str, Sequence[IndexRow]]) -> list[str]:
        """Those parts of an ensemble that do not answer, or are not loaded."""
        failing = {name for name, patient in self._patients.items() if not patient.answers}
        return sorted(name for name in parts if name in failing or not _ready(models.get(name, ())))

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
            asked = known_input(home(self.repositories, name), name, version, specs, config, self.known)
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
        patient.unloaded_here = True
        probe.control(self.http_url, "unload", name, timeout_s=self.probe_timeout_s)
        try:
            refusal = probe.control(self.http_url, "load", name, timeout_s=_LOAD_TIMEOUT_S)
        except probe.TooLate:
            self._say(f"{name}: not loaded within {_LOAD_TIMEOUT_S:g} s")
            return
        rows = self._index().get(name, ())
        patient.unloaded_here = _unloaded(rows)
        still = _plain(refusal.text) if refusal else self._failure(name, _ready(rows), patient)
        if still:
            self._say(f"{name}: still does not answer: {still}")
            return
        patient.answers = True
        patient.heals += 1
        self._say(f"{name}: answers again, after {time.monotonic() - started:.1f} s (heal {patient.heals})")

    # ---- what is told

    def _say(self, text: str) -> None:
        if not self._stopping.is_set():  # what fails while the server stops is no failure
            self._journal.say(text)

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
            "updated": now(),
            "interval_s": self.interval_s,
            "reachable": self._reachable,
            "since": self._since,
            "rounds": self.rounds,
            "rounds_cut_short": self.cut_short,
            **self._total(),
            "models": models,
        }
        self._journal.write_status(status)


def _ready(rows: Sequence[IndexRow]) -> list[str]:
    return [row.version for row in rows if row.state == "READY"]


def _unloaded(rows: Sequence[IndexRow]) -> bool:
    """Whether a model was unloaded, or is about to be; one whose folder is gone is in no row at all."""
    return all(row.state == "UNLOADING" or row.reason == "unloaded" for row in rows)


def _instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group", ())
    return max(1, sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", ()))) for group in groups))


def _plain(text: str) -> str:
    """Triton's words out of its JSON."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text
