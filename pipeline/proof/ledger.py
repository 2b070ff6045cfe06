"""The running of checks, whatever serves: each one's outcome is kept, and a lost server is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.base.errors import ConfigError, PipelineError, SmokeError, StageError, listed
from pipeline.base.values import Progress, SmokeCheck, SmokeResult
from pipeline.proof.failures import NoAnswerError, NotTriedError, RefusedError, WrongError

Protocol = Literal["http", "grpc", "-"]
"""How a check asks; ``-`` where it asks no server."""
Row = tuple[str, Protocol, Callable[[], str]]
"""A check: its title, its protocol, and what it does; that returns its detail, or raises what went wrong."""

_ASKING: tuple[Protocol, ...] = ("http", "grpc")


@dataclass
class Ledger:
    """The outcomes of one model's checks.

    Attributes:
        alive: raises a PipelineError when the server's process has ended.
        lost: why a protocol is not asked any more.
        final_words: a refusal that holds them is the last answer the model gives; empty where none is.
        notes: what could not be tried.
    """

    alive: Callable[[], None] = lambda: None
    lost: dict[str, str] = field(default_factory=dict)
    final_words: str = ""
    checks: list[SmokeCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, model: str, rows: Sequence[Row], progress: Progress) -> SmokeResult:
        """Run every check in order; what could not be tried is noted on the first."""
        for position, (title, protocol, body) in enumerate(rows):
            progress(f"smoke[{model}]: {title} ({protocol})", position / len(rows))
            self.check(title, protocol, body)
        progress(f"smoke[{model}]: done", 1.0)
        first, *rest = self.checks
        noted = replace(first, detail="; ".join([first.detail, *self.notes]))
        return SmokeResult(model=model, checks=(noted, *rest))

    def check(self, title: str, protocol: Protocol, body: Callable[[], str]) -> None:
        """Run one check and keep its outcome; once the server is lost, say so without asking it again.

        Raises:
            MissingError: this machine lacks what the check is made with.
        """
        if death := self._death():
            self._lose(_ASKING, death)
        if reason := self.lost.get(protocol):
            self._record(title, protocol, reason)
            return
        try:
            self._record(title, protocol, body(), passed=True)
        except NotTriedError as error:
            self.notes.append(" ".join(str(error).split()))
        except WrongError as error:
            self._record(title, protocol, str(error))
        except NoAnswerError as error:
            reason = self._death() or error.in_one_line()
            # A model that is too slow once is so over either protocol; a lost connection may be one port's trouble.
            self._lose(_ASKING if error.timed_out else (protocol,), reason)
            self._record(title, protocol, reason)
        except (ConfigError, StageError, SmokeError) as error:
            if isinstance(error, RefusedError) and self.final_words and self.final_words in error.text:
                self._lose(_ASKING, error.in_one_line())
            self._record(title, protocol, error.in_one_line())

    def _record(self, title: str, protocol: Protocol, detail: str, *, passed: bool = False) -> None:
        outcome: Literal["passed", "failed"] = "passed" if passed else "failed"
        self.checks.append(SmokeCheck(name=title, protocol=protocol, outcome=outcome, detail=detail))

    def _lose(self, protocols: Sequence[str], reason: str) -> None:
        self.lost.update(dict.fromkeys(protocols, reason))

    def _death(self) -> str:
        try:
            self.alive()
        except PipelineError as error:
            return error.in_one_line()
        return ""


def none_of(differences: Sequence[str]) -> None:
    """Fail a check unless there are no differences; the first few are told."""
    if differences:
        raise WrongError(listed(differences, between="; "))


def held(passed: bool, detail: str) -> str:
    """The detail of a check that passed; a WrongError with that of one that did not."""
    if not passed:
        raise WrongError(detail)
    return detail


def refused(ask: Callable[[], object], what: str, *, statuses: Sequence[str] = (), final_words: str = "") -> None:
    """Ask what must be refused: ``ask`` is to raise RefusedError, with one of ``statuses`` where any are given.

    A refusal that holds the ``final_words`` (see Ledger) is passed on: it says nothing of what was asked.

    Raises:
        WrongError: it was answered, or refused otherwise.
    """
    try:
        ask()
    except RefusedError as error:
        if final_words and final_words in error.text:
            raise
        if statuses and error.status not in statuses:
            raise WrongError(f"{what}: expected status {statuses[0]}, found {error.status}: {error.text}") from error
        return
    raise WrongError(f"{what}: answered, expected an error")
