"""Proves that a running server answers what the model answers.

Readiness proves nothing here: with a dead Python stub Triton keeps calling the model READY and answers every request
with an error (core 2.51), so each check that matters infers and compares with reference outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np

from pipeline.base.errors import SmokeError
from pipeline.base.values import Array, GoldenSamples, Progress, Sample, SmokeResult
from pipeline.data.samples import batches
from pipeline.proof.failures import NotTriedError, RefusedError, WrongError
from pipeline.proof.judge import Tally
from pipeline.proof.ledger import Ledger, Row, none_of, refused
from pipeline.servers.triton.client import shared_memory
from pipeline.servers.triton.client.connection import (
    CONCURRENCY,
    Connection,
    GrpcConnection,
    HttpConnection,
    connected,
    is_loopback,
)
from pipeline.servers.triton.client.messages import DEAD_STUB, Request, parse_class
from pipeline.servers.triton.proof import served, traffic
from pipeline.servers.triton.proof.asking import AskingJudge
from pipeline.servers.triton.proof.expectation import Expectation

_AT_ONCE = 4  # full batches in flight: enough to overlap sending with running, few enough for memory
_TEXT_ROUNDING = 1e-6  # the classification extension prints six decimals


def run(
    http_url: str, grpc_url: str, expectation: Expectation, *, request_timeout_s: float, progress: Progress
) -> SmokeResult:
    """Run every check; a wrong answer is a failed check, never an exception.

    Args:
        http_url: ``http://host:port``.
        grpc_url: ``host:port``.
        expectation: what is right.
        request_timeout_s: longest wait for one answer; a server that takes longer fails all checks that are left.
        progress: told each check's name and the share done.

    Raises:
        SmokeError: neither protocol gives a connection, or no version has reference samples.
    """
    name = expectation.model
    if not any(golden is not None for golden in expectation.versions.values()):
        raise SmokeError(f"smoke[{name}]: no served version has golden samples", hint="build the model again")
    with connected(name, http_url, grpc_url, request_timeout_s) as (http, grpc, lost):
        ledger = Ledger(alive=expectation.alive, lost=lost, final_words=DEAD_STUB)
        suite = _Suite(expectation, http, grpc, local=is_loopback(http_url) and is_loopback(grpc_url), ledger=ledger)
        return ledger.run(name, suite.plan(), progress)


@dataclass
class _Suite:
    """The checks of one model, and what they share."""

    expectation: Expectation
    http: HttpConnection
    grpc: GrpcConnection
    local: bool
    ledger: Ledger
    merged: str = ""
    judge: AskingJudge = field(init=False)
    golden: GoldenSamples = field(init=False)
    version: int = field(init=False)
    default: str = field(init=False)

    def __post_init__(self) -> None:
        self.judge = AskingJudge(self.expectation)
        known = {version: golden for version, golden in self.expectation.versions.items() if golden is not None}
        newest = max(known)
        self.golden = known[newest]
        self.version = newest
        # An empty version proves the server's own choice too, where that choice is known: the newest.
        self.default = "" if newest == max(self.expectation.versions) else str(newest)

    # ---- running

    def plan(self) -> list[Row]:
        """Every check: its title, its protocol and what it does."""
        both: list[tuple[str, Callable[[Connection], str]]] = [
            ("metadata", self._metadata),
            ("config", self._config),
            ("index", self._index),
        ]
        for version, golden in sorted(self.expectation.versions.items()):
            title = f"version {version} samples"
            both.append(
                (title, partial(self._answers, version) if golden is None else partial(self._golden, version, golden))
            )
        both.append(("unserved version", self._unserved))
        both.append(("wrong requests", self._wrong_requests))
        if self.expectation.max_batch_size > 0:
            both.append(("batch limit", self._batch_limit))
        if self._labelled():
            both.append(("labels", self._labels))
        both.append(("concurrency", self._concurrency))
        rows: list[Row] = [
            (title, connection.protocol, partial(body, connection))
            for title, body in both
            for connection in (self.http, self.grpc)
        ]
        if self.local:
            rows.append(("shared memory", "grpc", self._shared_memory))
        else:
            self.ledger.notes.append("shared memory not tried: the server is on another machine")
        if self._must_merge():
            rows.append(("dynamic batching", "grpc", self._dynamic_batching))
        return rows

    # ---- what every check uses

    def _still_answers(self, connection: Connection, after: str) -> None:
        sample = self.golden.samples[0]
        answer = connection.infer(self.judge.request(sample, self.default))
        self.judge.compare(answer, sample, f"a right request after {after}", Tally())

    # ---- what the server says

    def _metadata(self, connection: Connection) -> str:
        expected = self.expectation
        found = connection.metadata(expected.model)
        none_of(served.metadata_differences(expected.signature, expected.config, expected.versions, found))
        return f"{len(found.inputs)} inputs, {len(found.outputs)} outputs, versions {', '.join(found.versions)}"

    def _config(self, connection: Connection) -> str:
        expected = self.expectation
        found = connection.config(expected.model)
        differences = served.config_differences(expected.config, found)
        if found.max_batch_size != expected.max_batch_size != expected.config.max_batch_size:
            differences.append(f"max_batch_size: expected {expected.max_batch_size}, served {found.max_batch_size}")
        none_of(differences)
        return f"max_batch_size {found.max_batch_size}"

    def _index(self, connection: Connection) -> str:
        expected = self.expectation
        none_of(served.index_differences(connection.index(), expected.model, expected.versions))
        return f"READY: {', '.join(str(version) for version in sorted(expected.versions))}"

    # ---- answers

    def _golden(self, version: int, golden: GoldenSamples, connection: Connection) -> str:
        """Every sample at every size, split between the protocols so that each sees every sample and every size.

        gRPC takes every sample alone, HTTP takes every sample at the larger sizes; each takes one batch of the rest.
        """
        sizes = traffic.batch_sizes(self.expectation.max_batch_size, joined=golden.batched)
        tally = Tally()
        for size in sizes:
            alone = size == 1
            everything = len(sizes) == 1 or alone == (connection.protocol == "grpc")
            stream = batches(golden, size)
            self._stream(connection, stream if everything else islice(stream, 1), version, size, tally)
        self.judge.agreement(tally)
        return f"{len(golden.samples)} samples at batch {', '.join(map(str, sizes))}: max abs {tally.max_abs:.2g}"

    def _stream(self, connection: Connection, stream: Iterator[Sample], version: int, size: int, tally: Tally) -> None:
        """One at a time at the smaller sizes (in flight together they would be merged), several at the largest."""
        at_once = _AT_ONCE if size > 1 and size == self.expectation.max_batch_size else 1
        position = 0
        while window := list(islice(stream, at_once)):
            requests = [self.judge.request(sample, str(version)) for sample in window]
            answers = connection.infer_all(requests) if at_once > 1 else [connection.infer(requests[0])]
            for sample, answer in zip(window, answers, strict=True):
                self.judge.compare(answer, sample, f"batch size {size}, request {position}", tally)
                position += 1

    def _answers(self, version: int, connection: Connection) -> str:
        answer = connection.infer(self.judge.request(self.golden.samples[0], str(version)))
        for name, array in answer.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WrongError(f"output {name} holds NaN or infinity")
        return "1 request answered with finite values; its reference samples are not at hand"

    def _labelled(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Outputs of scores over one axis, which is what the classification extension can rank, with their labels."""
        batch = 1 if self.expectation.signature.batch else 0
        return tuple(
            (spec.name, spec.labels)
            for spec in self.expectation.signature.outputs
            if spec.labels and len(spec.shape) - batch == 1
        )

    def _labels(self, connection: Connection) -> str:
        """All classes of a few samples: every index must carry its own label, so that swapped ones show."""
        joined = self.golden.batched and self.expectation.max_batch_size > 0
        size = min(8, self.expectation.max_batch_size) if joined else 1
        sample = next(iter(batches(self.golden, size)))
        for name, labels in self._labelled():
            scores = sample.outputs[name].reshape(size, -1).astype(np.float64)
            request = replace(self.judge.request(sample, self.default), outputs=(name,), classes=scores.shape[1])
            answer = connection.infer(request)[name].reshape(size, -1)
            try:
                rows = [[parse_class(value) for value in row] for row in answer]
            except ValueError as error:
                raise WrongError(f"output {name}: not score:index:label: {error}") from error
            tolerance = self.expectation.tolerance
            limit = tolerance.allowed(scores) + _TEXT_ROUNDING
            none_of([f"output {name}, {text}" for text in traffic.class_differences(rows, scores, labels, limit=limit)])
        counts = ", ".join(f"{len(labels)} labels of {name}" for name, labels in self._labelled())
        return f"{counts} in {size} samples"

    # ---- refusals

    def _refused(self, connection: Connection, request: Request, what: str) -> None:
        refused(partial(connection.infer, request), what, final_words=DEAD_STUB)

    def _wrong_requests(self, connection: Connection) -> str:
        good = self.judge.request(self.golden.samples[0], self.default)
        dims = {item.name: list(item.dims) for item in self.expectation.config.input}
        wrong = traffic.wrong_requests(good, dims)
        for what, request in wrong:
            self._refused(connection, request, f"wrong {what}")
        self._still_answers(connection, "the wrong ones")
        return f"refused: {', '.join(what for what, _ in wrong)}; a right one is still answered"

    def _batch_limit(self, connection: Connection) -> str:
        size = self.expectation.max_batch_size + 1
        request = self.judge.request(traffic.repeated(self.golden.samples[0], size), self.default)
        self._refused(connection, request, f"a batch of {size}")
        self._still_answers(connection, f"a batch of {size}")
        return f"a batch of {size} refused; a right one is still answered"

    def _unserved(self, connection: Connection) -> str:
        version = max(self.expectation.versions) + 1
        self._refused(connection, self.judge.request(self.golden.samples[0], str(version)), f"version {version}")
        self._still_answers(connection, f"asking for version {version}")
        return f"version {version} refused; the served ones are answered"

    # ---- concurrency

    def _concurrency(self, connection: Connection) -> str:
        count = CONCURRENCY
        if bound := self.expectation.config.dynamic_batching.default_queue_policy.max_queue_size:
            count = min(count, bound)  # more would rightly be refused
        sizes, tally = self._burst(connection, count)
        return (
            f"{count} requests at once of {min(sizes)} to {max(sizes)} samples, each with its own answer: "
            f"max abs {tally.max_abs:.2g}"
        )

    def _burst(self, connection: Connection, count: int, *, busy: bool = False) -> tuple[list[int], Tally]:
        """Send ``count`` mixed requests at once, hold each answer against its own reference, note merged ones."""
        limit = self.expectation.max_batch_size
        sizes = traffic.mixed_sizes(count, limit, joined=self.golden.batched, busy=busy)
        sent = traffic.burst(self.golden, sizes)
        before = connection.statistics(self.expectation.model, str(self.version))
        answers = connection.infer_all([self.judge.request(sample, self.default) for sample in sent])
        tally = Tally()
        for position, (sample, answer) in enumerate(zip(sent, answers, strict=True)):
            try:
                self.judge.compare(answer, sample, f"request {position} of {count} at once", tally)
            except WrongError as error:
                raise WrongError(f"{error}{self._whose(answer, sent, position)}") from error
        self.judge.agreement(tally)
        after = connection.statistics(self.expectation.model, str(self.version))
        self.merged = self.merged or traffic.merged(before, after, max(sizes))
        return sizes, tally

    def _whose(self, answer: dict[str, Array] | RefusedError, sent: Sequence[Sample], position: int) -> str:
        for other, sample in enumerate(sent):
            if other != position:
                with contextlib.suppress(WrongError, RefusedError):
                    self.judge.compare(answer, sample, "", Tally())
                    return f" (it is the answer of request {other})"
        return ""

    def _must_merge(self) -> bool:
        config = self.expectation.config
        return bool(
            config.HasField("dynamic_batching")
            and not config.dynamic_batching.preferred_batch_size
            and not config.response_cache.enable  # repeated requests are then not run at all
            and self.expectation.max_batch_size > 1
        )

    def _dynamic_batching(self) -> str:
        """Merging depends on timing: a burst that showed none is followed by larger ones that keep the model busy."""
        bound = self.expectation.config.dynamic_batching.default_queue_policy.max_queue_size
        for count in traffic.BURSTS:
            if self.merged:
                break
            self._burst(self.grpc, min(count, bound) if bound else count, busy=True)
        if not self.merged:
            raise WrongError(f"no two requests were run as one batch, in bursts of up to {max(traffic.BURSTS)}")
        return self.merged

    def _shared_memory(self) -> str:
        sample = self.golden.samples[0]
        request = self.judge.request(sample, self.default)
        try:
            answer = shared_memory.infer(self.grpc, request, sample.outputs)
        except shared_memory.ForeignMemoryError as error:
            raise NotTriedError(f"shared memory not tried: {error}") from error
        self.judge.compare(dict(answer), sample, "through shared memory", tally := Tally())
        return f"inputs and outputs in system shared memory: max abs {tally.max_abs:.2g}"
