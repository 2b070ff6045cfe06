"""Sends a load to a running server and accounts for every request of it.

Closed loop: so many workers, each sending its next request when the last one is answered. Open loop: requests are due
at fixed times, whatever the server does, and latency counts from then; a server that stalls is charged for all that
should have been sent meanwhile, and not for one request per worker ("coordinated omission").
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.base.values import Progress, Tensors
from pipeline.load import inputs, lines
from pipeline.load.answers import Judge, distinct
from pipeline.load.ledger import Ledger, Outcome
from pipeline.proof.failures import NoAnswerError, RefusedError
from pipeline.servers.triton.client.connection import GrpcConnection, HttpConnection, is_loopback
from pipeline.servers.triton.client.messages import Reply, Request
from pipeline.servers.triton.client.prediction import served_config
from pipeline.servers.triton.client.shared_memory import ForeignMemoryError

Protocol = Literal["http", "grpc", "shm"]
_GRACE_S = 3.0  # for answers on their way when a person interrupts
_POLL_S = 0.2
_LOST = (RefusedError, NoAnswerError, ForeignMemoryError)
_ABANDONED = "interrupted before the answer came"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What load on which server.

    Attributes:
        model: its Triton name; the server chooses the version.
        concurrency: most in flight at a time.
        rate: requests per second of an open loop; None for a closed one.
        protocol: ``shm`` is gRPC with the tensors in system shared memory.
        url: of the server, for this protocol: ``http://host:port``, or ``host:port`` for gRPC.
    """

    model: str
    requests: int
    concurrency: int
    rate: float | None
    protocol: Protocol
    url: str
    images: Sequence[Path] = ()
    arrays: Sequence[Path] = ()
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a load.

    Attributes:
        duration_s: from the start to the last outcome.
        given: how many inputs there were.
        distinct: how many of them were sent: those whose answers can be told apart.
    """

    order: Order
    outcomes: tuple[Outcome, ...]
    duration_s: float
    given: int
    distinct: int
    interrupted: bool
    notes: tuple[str, ...]


def run(order: Order, progress: Progress) -> Result:
    """Ask every input alone, then send the load; Ctrl-C ends it early, with everything sent accounted for.

    Raises:
        ConfigError: the server does not serve the model, or it cannot be loaded with these inputs.
        MissingError: the server does not see this machine's shared memory.
        SmokeError: no server answers there, it is no Triton, or it refuses an input asked alone.
    """
    name = f"load[{order.model}]"
    if order.protocol == "shm" and not is_loopback(order.url):
        raise ConfigError(f"{name}: shared memory needs the server on this machine", found=order.url)
    make = HttpConnection if order.protocol == "http" else GrpcConnection
    with _explained(name, order.url), contextlib.closing(make(order.url, order.timeout_s)) as connection:
        config = _served_config(connection, order)
        questions = inputs.questions(config, order.images, order.arrays)
        outputs = tuple(tensor.name for tensor in config.output)
        asked = [Request(model=order.model, inputs=item.inputs, outputs=outputs) for item in questions]
        answers = _ask_alone(connection, asked, questions, name, progress)
        chosen = distinct(answers)
        asked, answers = [asked[number] for number in chosen], [answers[number] for number in chosen]
        with contextlib.ExitStack() as stack:
            line = stack.enter_context(_line(connection, order, asked, answers))
            crew = _Crew(order, line, Judge(answers), len(asked), name)
            crew.work(progress)
            with contextlib.suppress(KeyboardInterrupt):  # all is accounted for: another Ctrl-C loses nothing
                stack.close()
    return Result(
        order=order,
        outcomes=crew.outcomes,
        duration_s=crew.ended_s - crew.started_s,
        given=len(questions),
        distinct=len(chosen),
        interrupted=crew.interrupted,
        notes=tuple(_notes(order, config, len(questions), len(chosen))),
    )


@contextlib.contextmanager
def _explained(name: str, url: str) -> Iterator[None]:
    """What went wrong before there was anything to account for, with what to do about it."""
    try:
        yield
    except NoAnswerError as error:
        hint = "start one: python -m pipeline serve REPOSITORY; or name its address with --url"
        raise SmokeError(f"{name}: no answer from {url}", found=error.found or error.what, hint=hint) from error
    except ForeignMemoryError as error:
        raise MissingError(
            f"{name}: the server does not see this machine's shared memory", found=str(error), hint="--protocol grpc"
        ) from error


def _served_config(connection: HttpConnection | GrpcConnection, order: Order) -> Any:
    config = served_config(connection, order.model, order.url, "load")
    if config.model_transaction_policy.decoupled or config.HasField("sequence_batching"):
        kind = "decoupled" if config.model_transaction_policy.decoupled else "a model of sequences"
        needs = "a load needs one answer for one request, whatever came before"
        raise ConfigError(f"load[{order.model}]: it is {kind}", found=needs)
    return config


def _ask_alone(
    connection: HttpConnection | GrpcConnection,
    asked: Sequence[Request],
    questions: Sequence[inputs.Question],
    name: str,
    progress: Progress,
) -> list[Tensors]:
    """The answer of each question, with nothing else from us in flight."""
    answers: list[Tensors] = []
    for number, (request, question) in enumerate(zip(asked, questions, strict=True)):
        progress(f"{name}: asking {len(asked)} inputs alone", number / len(asked))
        try:
            answers.append(connection.infer(request))
        except RefusedError as error:
            raise SmokeError(
                f"{name}: the server refused input {question.origin}, asked alone",
                found=error.text,
                hint="give it inputs that it answers: --image FILE or --input FILE.npz",
            ) from error
    return answers


@contextlib.contextmanager
def _line(
    connection: HttpConnection | GrpcConnection, order: Order, asked: Sequence[Request], answers: Sequence[Tensors]
) -> Iterator[lines.Line]:
    if isinstance(connection, HttpConnection):
        yield lines.http(order.url, order.timeout_s, [connection.prepare(request) for request in asked])
    elif order.protocol == "grpc":
        yield lines.grpc(connection, [connection.prepare(request) for request in asked])
    else:
        with lines.memory(connection, asked, answers) as line:
            yield line


def _notes(order: Order, config: Any, given: int, sent: int) -> Iterator[str]:
    if not order.images and not order.arrays:
        yield "inputs were made up from the model's configuration; --image or --input sends real ones"
    if given == inputs.MOST:
        yield f"the first {inputs.MOST} inputs were used"
    if sent == 1:
        yield "all inputs have the same answer, so a mixed-up one would not be seen; give inputs that differ"
    elif sent < given:
        yield f"{given - sent} of {given} inputs were left out: their answers cannot be told from another's"
    if config.response_cache.enable:
        yield "the model's response cache is on: repeated inputs may be answered from it"


class _Crew:
    """The workers of one load; ``outcomes``, in order of the requests' numbers, are complete after ``work``."""

    def __init__(self, order: Order, line: lines.Line, judge: Judge, questions: int, name: str) -> None:
        self._order, self._line, self._judge, self._questions, self._name = order, line, judge, questions, name
        self._ledger = Ledger(order.requests)
        self._workers = min(order.concurrency, order.requests)
        self._start = threading.Barrier(self._workers, action=self._started)
        self._stopping = threading.Event()
        self._bugs: list[Exception] = []
        self._token = f"load-{os.getpid()}-{os.urandom(4).hex()}"
        self.outcomes: tuple[Outcome, ...] = ()
        self.started_s = self.ended_s = 0.0
        self.interrupted = False

    def work(self, progress: Progress) -> None:
        """Send everything, or as much as Ctrl-C leaves time for."""
        threads = [threading.Thread(target=self._guarded, daemon=True) for _ in range(self._workers)]
        try:
            for thread in threads:
                thread.start()
            self._wait(threads, progress)
        except KeyboardInterrupt:
            self.interrupted = True
            self._stop()
            with contextlib.suppress(KeyboardInterrupt):  # a second one does not wait for answers
                self._grace(threads)
        finally:
            self._stop()
            self.outcomes = self._ledger.close(_ABANDONED, time.monotonic())
        self.ended_s = max((outcome.done_s for outcome in self.outcomes), default=self.started_s)
        if self._bugs:
            raise self._bugs[0]

    def _started(self) -> None:
        self.started_s = time.monotonic()

    def _stop(self) -> None:
        self._stopping.set()
        self._start.abort()

    def _wait(self, threads: Sequence[threading.Thread], progress: Progress) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(_POLL_S)
                done, failed = self._ledger.counts()
                share = done / self._order.requests
                progress(f"{self._name}: {done} of {self._order.requests} done, {failed} failed", share)

    def _grace(self, threads: Sequence[threading.Thread]) -> None:
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    # ---- one worker

    def _guarded(self) -> None:
        try:
            self._worker()
        except Exception as error:  # noqa: BLE001 - a bug of ours must end the load, not one silent worker
            self._bugs.append(error)
            self._stop()

    def _worker(self) -> None:
        sender: lines.Sender | None = None
        with contextlib.suppress(*_LOST):  # the first request tries again, and tells why
            sender = self._line()
        try:
            with contextlib.suppress(threading.BrokenBarrierError):  # interrupted: there will be no turn
                self._start.wait()  # connections are made before the clock runs
            while (number := self._ledger.take()) is not None and self._await_turn(number):
                try:
                    if sender is None:
                        sender = self._line()
                    self._settle(number, sender.send(number % self._questions, self._identifier(number)))
                except _LOST as error:
                    self._ledger.settle(number, done_s=time.monotonic(), error=self._words(error, number))
                    if sender is not None and not isinstance(error, RefusedError):
                        sender.close()  # an answer that comes too late must not be taken for the next one's
                        sender = None
        finally:
            if sender is not None:
                sender.close()

    def _await_turn(self, number: int) -> bool:
        """Wait until a request is due, and note that it is sent; False when the load ends before."""
        due_s = None if self._order.rate is None else self.started_s + number / self._order.rate
        early_s = 0.0 if due_s is None else due_s - time.monotonic()
        if self._stopping.wait(early_s) if early_s > 0 else self._stopping.is_set():
            return False
        sent_s = time.monotonic()
        return self._ledger.sending(number, due_s=sent_s if due_s is None else due_s, sent_s=sent_s)

    def _settle(self, number: int, reply: Reply) -> None:
        done_s = time.monotonic()
        fault = self._judge.fault(number % self._questions, reply.outputs)
        if reply.identifier != self._identifier(number):
            fault = "answered under the id of another request"
        self._ledger.settle(number, done_s=done_s, error=fault, mismatched=bool(fault))

    def _identifier(self, number: int) -> str:
        return f"{self._token}-{number}"

    def _words(self, error: Exception, number: int) -> str:
        """What went wrong, without the request's id, so that equal failures read alike."""
        if isinstance(error, NoAnswerError):
            return f"{error.what}: {error.found}" if error.found else error.what
        text = error.text if isinstance(error, RefusedError) else str(error)
        return " ".join(text.replace(f"[request id: {self._identifier(number)}]", "").split())
