from __future__ import annotations

import random
import threading

from pipeline.load.ledger import Ledger


def test_numbers_are_given_out_once_each() -> None:
    ledger = Ledger(3)
    assert [ledger.take() for _ in range(5)] == [0, 1, 2, None, None]


def test_latency_counts_from_when_a_request_was_due() -> None:
    ledger = Ledger(1)
    ledger.take()
    assert ledger.sending(0, due_s=1.0, sent_s=4.0)
    ledger.settle(0, done_s=4.5)
    (outcome,) = ledger.close("", 9.0)
    assert outcome.latency_s == 3.5
    assert (outcome.error, outcome.mismatched) == ("", False)


def test_what_is_open_at_the_end_has_failed_and_what_comes_later_counts_for_nothing() -> None:
    ledger = Ledger(4)
    for number in (0, 1):
        ledger.take()
        ledger.sending(number, due_s=0.0, sent_s=float(number))
    taken = ledger.take()
    ledger.settle(0, done_s=2.0, error="refused")
    assert ledger.counts() == (1, 1)
    outcomes = ledger.close("given up", 5.0)
    assert [(outcome.error, outcome.done_s) for outcome in outcomes] == [("refused", 2.0), ("given up", 5.0)]
    ledger.settle(1, done_s=6.0)
    assert taken == 2
    assert not ledger.sending(taken, due_s=6.0, sent_s=6.0)
    assert ledger.take() is None
    assert ledger.close("again", 7.0) == outcomes


def test_a_request_has_one_outcome() -> None:
    ledger = Ledger(1)
    ledger.take()
    ledger.sending(0, due_s=0.0, sent_s=0.0)
    ledger.settle(0, done_s=1.0, error="first")
    ledger.settle(0, done_s=2.0)
    (outcome,) = ledger.close("", 3.0)
    assert (outcome.error, outcome.done_s) == ("first", 1.0)


def test_many_threads_lose_nothing() -> None:
    ledger, sent = Ledger(2000), []

    def work(seed: int) -> None:
        generator = random.Random(seed)
        while (number := ledger.take()) is not None:
            ledger.sending(number, due_s=0.0, sent_s=0.0)
            sent.append(number)
            if generator.random() < 0.9:
                ledger.settle(number, done_s=1.0, error="x" if generator.random() < 0.1 else "")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = ledger.close("lost", 2.0)
    assert sorted(sent) == list(range(2000))
    assert len(outcomes) == 2000
    assert 100 < sum(outcome.error == "lost" for outcome in outcomes) < 320
