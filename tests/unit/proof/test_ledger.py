"""What becomes of a check, by what it raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.base.errors import ConfigError, MissingError, SmokeError, StageError
from pipeline.proof.failures import NoAnswerError, NotTriedError, RefusedError, WrongError
from pipeline.proof.ledger import Ledger, held, none_of


def raising(error: Exception) -> Callable[[], str]:
    def body() -> str:
        raise error

    return body


def outcome(error: Exception) -> tuple[str, str]:
    ledger = Ledger()
    ledger.check("one", "http", raising(error))
    (check,) = ledger.checks
    return check.outcome, check.detail


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (WrongError("two is no three"), "two is no three"),
        (RefusedError("no such\nmodel", "404"), "the server answered with an error (404): no such model"),
        (NoAnswerError("no connection", found="refused"), "no connection: refused"),
        (SmokeError("its metadata is another"), "its metadata is another"),
        (StageError("it did not run", found="a\n  b"), "it did not run: a b"),
        (ConfigError("models.config cannot be read"), "models.config cannot be read"),
    ],
)
def test_what_is_wrong_with_an_answer_is_a_failed_check(error: Exception, detail: str) -> None:
    assert outcome(error) == ("failed", detail)


def test_what_this_machine_lacks_is_no_fault_of_the_server() -> None:
    with pytest.raises(MissingError):
        outcome(MissingError("TensorFlow is not installed"))


def test_a_bug_is_a_traceback() -> None:
    with pytest.raises(KeyError):
        outcome(KeyError("y"))


def test_what_was_not_tried_is_noted_on_the_first_check() -> None:
    told: list[str] = []
    result = Ledger(notes=["said before"]).run(
        "m",
        [("one", "http", lambda: "fine"), ("two", "grpc", raising(NotTriedError("memory not\ntried")))],
        lambda text, share: told.append(text),
    )
    assert [(check.name, check.detail) for check in result.checks] == [("one", "fine; said before; memory not tried")]
    assert told == ["smoke[m]: one (http)", "smoke[m]: two (grpc)", "smoke[m]: done"]


def test_a_lost_connection_is_one_protocol_s() -> None:
    ledger = Ledger()
    for protocol in ("http", "grpc", "-"):
        ledger.check("first", protocol, raising(NoAnswerError("gone")) if protocol == "http" else lambda: "")
    ledger.check("second", "http", lambda: pytest.fail("it was asked"))
    assert [check.outcome for check in ledger.checks] == ["failed", "passed", "passed", "failed"]


def test_the_last_words_of_a_model_end_the_asking() -> None:
    ledger = Ledger(final_words="is not healthy")
    ledger.check("first", "grpc", raising(RefusedError("the batch is too large", "INVALID_ARGUMENT")))
    ledger.check("second", "grpc", raising(RefusedError("Stub process 'm_0' is not healthy.", "INTERNAL")))
    ledger.check("third", "http", lambda: pytest.fail("it was asked"))
    assert "is not healthy" in ledger.checks[2].detail


def test_a_second_run_adds_to_the_first() -> None:
    ledger = Ledger()
    ledger.run("m", [("offline", "-", lambda: "a")], lambda text, share: None)
    result = ledger.run("m", [("served", "http", lambda: "b")], lambda text, share: None)
    assert [check.detail for check in result.checks] == ["a", "b"]


def test_differences_and_verdicts_become_details() -> None:
    none_of([])
    with pytest.raises(WrongError, match=r"^a; b; c; d; e; and 2 more$"):
        none_of(list("abcdefg"))
    assert held(True, "fine") == "fine"
    with pytest.raises(WrongError, match=r"^3 answers, expected 4$"):
        held(False, "3 answers, expected 4")
