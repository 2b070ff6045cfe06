"""Proves that a running TorchServe answers what the model answers, over every protocol it speaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import psutil

from pipeline.base import network
from pipeline.base.errors import SmokeError
from pipeline.base.values import (
    GoldenSamples,
    Measurement,
    Progress,
    RunningServer,
    Sample,
    Signature,
    SmokeResult,
    Tolerance,
)
from pipeline.images.postprocessing import Postprocessing
from pipeline.proof import measure
from pipeline.proof.failures import NoAnswerError, WrongError
from pipeline.proof.judge import Judge, Tally
from pipeline.proof.labels import judged, listed, references
from pipeline.proof.ledger import Ledger, Row, refused
from pipeline.servers.torchserve import api as torchserve_api
from pipeline.servers.torchserve.client import Answer, TorchServeClient, json_lists, npy

_AT_ONCE = 16  # well below the 100 jobs that TorchServe queues
_AS_JSON = 4  # samples sent as JSON too; lists of large tensors are slow to read
_BURSTS = 3  # merging depends on timing
_RECOVERY_S = 60.0  # measured: 4 s, and the first retry waits 1 s
_POLL_S = 0.1
_BAD = ("400",)  # status of a refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServeExpectation:
    """What a TorchServe should serve of one model.

    Attributes:
        model: its name.
        batch_size: most requests in one forward pass.
        max_batch_delay_ms: as configured.
        workers: as configured.
        tolerance: how close an answer must be to the reference.
        scores: the output that labels are made of, and how; None where answers are the outputs.
        alive: raises a PipelineError when the server's process has ended.
    """

    model: str
    signature: Signature
    golden: GoldenSamples
    batch_size: int
    max_batch_delay_ms: int
    workers: int
    tolerance: Tolerance
    scores: tuple[str, Postprocessing] | None
    alive: Callable[[], None]


def run(
    server: RunningServer,
    management_url: str,
    expectation: TorchServeExpectation,
    *,
    request_timeout_s: float,
    progress: Progress,
) -> SmokeResult:
    """Run every check; a wrong answer is a failed check, never an exception. One worker is killed at the end.

    Args:
        server: where its inference API listens, over HTTP and gRPC; launched here.
        management_url: ``http://host:port``.
        expectation: what is right.
        request_timeout_s: longest wait for one answer.
        progress: told each check's name and the share done.
    """
    client = TorchServeClient(
        server.http_url, server.grpc_url, expectation.model, expectation.signature, request_timeout_s
    )
    with contextlib.closing(client):
        suite = _Suite(expectation, client, management_url, server.metrics_url, server.pid)
        return Ledger(alive=expectation.alive).run(expectation.model, suite.plan(), progress)


def measured(
    server: RunningServer, expectation: TorchServeExpectation, *, request_timeout_s: float, progress: Progress
) -> Measurement | SmokeError:
    """How fast it answers golden samples over gRPC, the way Triton's models are measured; or why it did not."""
    client = TorchServeClient(
        server.http_url, server.grpc_url, expectation.model, expectation.signature, request_timeout_s
    )
    with contextlib.closing(client):
        bodies = [_grpc_body(sample, expectation.signature) for sample in expectation.golden.samples]
        asked = measure.Subject(ask=lambda turn: client.predict_grpc(bodies[turn % len(bodies)]))
        (result,) = measure.in_rounds([asked], progress)
    return result


def _grpc_body(sample: Sample, signature: Signature) -> dict[str, bytes]:
    """A sample as its image file, or its tensors as .npy."""
    if sample.image and signature.image:
        return {"data": sample.image}
    return {name: npy(array) for name, array in sample.inputs.items()}


@dataclass
class _Suite:
    expectation: TorchServeExpectation
    client: TorchServeClient
    management_url: str
    metrics_url: str
    server_pid: int
    judge: Judge = field(init=False)
    largest: int = 0

    def __post_init__(self) -> None:
        batched = self.expectation.signature.batch is not None
        self.judge = Judge(self.expectation.tolerance, batched=batched)

    def plan(self) -> list[Row]:
        """Every check: its title, its protocol and what it does."""
        rows: list[Row] = [
            ("registration", "http", self._registration),
            ("predictions", "http", self._predictions),
            ("predictions", "grpc", self._predictions_grpc),
            ("kserve v2", "http", lambda: self._tensors(self.client.infer)),
            ("kserve v2", "grpc", self._v2_grpc),
            ("wrong requests", "http", self._wrong_requests),
            ("wrong requests", "grpc", self._wrong_requests_grpc),
        ]
        if self.expectation.batch_size > 1:
            rows.append(("batching", "http", self._batching))
        return [*rows, ("metrics", "http", self._metrics), ("killed worker", "http", self._killed_worker)]

    # ---- what the server says

    def _registration(self) -> str:
        expected = self.expectation
        found = self._described()
        wanted = (expected.batch_size, expected.max_batch_delay_ms, expected.workers)
        if (found.batch_size, found.max_batch_delay_ms, len(found.workers)) != wanted:
            raise WrongError(f"expected batch size, delay and workers {wanted}; registered: {found}")
        return f"batch size {found.batch_size}, delay {found.max_batch_delay_ms} ms, {len(found.workers)} READY"

    def _described(self) -> torchserve_api.Registration:
        try:
            return torchserve_api.describe(self.management_url, self.expectation.model, timeout_s=10.0)
        except torchserve_api.NotAnswered as error:
            raise NoAnswerError("no answer of the management API", found=str(error)) from error

    def _metrics(self) -> str:
        try:
            with network.opener.open(f"{self.metrics_url}/metrics", timeout=10.0) as answer:
                lines = answer.read().decode().splitlines()
        except OSError as error:
            raise NoAnswerError("no answer of the metrics API", found=str(error)) from error
        name = f'model_name="{self.expectation.model}"'
        counted = [line for line in lines if line.startswith("ts_inference_requests_total{") and name in line]
        total = sum(float(line.rsplit(" ", 1)[1]) for line in counted)
        if total < len(self.expectation.golden.samples):
            raise WrongError(f"ts_inference_requests_total counts {total:.0f} requests, fewer than were answered")
        return f"ts_inference_requests_total {total:.0f}"

    # ---- answers

    def _predictions(self) -> str:
        """Every sample as its image or as .npy, and a few as JSON lists, in which several inputs come anyway."""
        samples = self.expectation.golden.samples
        detail = self._all(samples, lambda sample: self._answered(self._predict(sample), sample))
        if self.expectation.scores is not None:
            detail += f": the labels and probabilities of output {self.expectation.scores[0]}"
        if self.expectation.signature.image is None:
            self._all(samples[:_AS_JSON], lambda sample: self._answered(self._predict(sample, as_json=True), sample))
        return detail

    def _predict(self, sample: Sample, *, as_json: bool = False) -> Any:
        if sample.image and self.expectation.signature.image:
            return self._noted(self.client.predict(sample.image))
        if as_json or len(sample.inputs) > 1:
            return self._noted(self.client.predict(json_lists(sample.inputs), "application/json"))
        return self._noted(self.client.predict(npy(next(iter(sample.inputs.values())))))

    def _noted(self, answer: Answer) -> Any:
        self.largest = max(self.largest, answer.batch_size)
        return answer.value

    def _predictions_grpc(self) -> str:
        def ask(sample: Sample) -> Any:
            body = _grpc_body(sample, self.expectation.signature)
            return self._answered(self.client.predict_grpc(body), sample)

        return self._all(self.expectation.golden.samples, ask)

    def _v2_grpc(self) -> str:
        if not self.client.grpc_carries_inputs:
            return "not asked: the protocol has no field for an input of this type over gRPC"
        return self._tensors(self.client.infer_grpc)

    def _tensors(self, infer: Callable[..., Any]) -> str:
        return self._all(self.expectation.golden.samples, lambda sample: self._tally(infer(sample.inputs), sample))

    def _all(self, samples: Sequence[Sample], ask: Callable[[Sample], Tally]) -> str:
        """Ask about all samples, several at once, so that batches form; each answer must be its own sample's."""
        total = Tally()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for tally in pool.map(ask, samples):
                total.max_abs = max(total.max_abs, tally.max_abs)
                total.judged += tally.judged
                total.agreed += tally.agreed
        self.judge.agreement(total)
        return f"{len(samples)} samples, {_AT_ONCE} at once" + (
            f": max abs {total.max_abs:.2g}" if total.judged else ""
        )

    def _answered(self, value: Any, sample: Sample) -> Tally:
        """Hold an answer of TorchServe's own protocol against the reference."""
        if self.expectation.scores is None:
            return self._tally(self.client.arrays(value), sample)
        name, how = self.expectation.scores
        (reference,) = references(sample.outputs[name].reshape(1, -1), how, self.expectation.tolerance)
        try:
            verdict = judged(listed(value), reference, how)
        except ValueError as error:
            raise WrongError(str(error)) from error
        if verdict.differences:
            raise WrongError("; ".join(verdict.differences))
        return Tally()

    def _tally(self, answer: Any, sample: Sample) -> Tally:
        tally = Tally()
        self.judge.compare(answer, sample, "a golden sample", tally)
        return tally

    # ---- batches

    def _batching(self) -> str:
        """A burst of samples of one shape; the handler says with each answer how many shared its forward pass."""
        samples = self._burst()
        for _ in range(_BURSTS):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda sample: self._answered(self._predict(sample), sample), samples))
            if self.largest > 1:
                return f"up to {self.largest} requests in one forward pass, each with its own answer"
        raise WrongError(f"no two of {len(samples)} requests, {_AT_ONCE} at once, were run as one batch")

    def _burst(self) -> list[Sample]:
        """Twice as many samples as are asked at once, of the first one's shapes."""
        first, *others = self.expectation.golden.samples
        same = [sample for sample in others if _shapes(sample) == _shapes(first)]
        return [[first, *same][position % (1 + len(same))] for position in range(2 * _AT_ONCE)]

    # ---- refusals

    def _wrong_requests(self) -> str:
        """Each alone, then one among right ones, whose answers it must not cost."""
        first = self.expectation.golden.samples[0]
        unknown = partial(self.client.predict, b"x", model=f"{self.expectation.model}_absent")
        refused(unknown, "an unknown model", statuses=("404",))
        wrong = _wrong_bodies(first)
        for what, body in wrong:
            refused(partial(self.client.predict, body), what, statuses=_BAD)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            burst = [pool.submit(self._predict, sample) for sample in self._burst()]
            among = pool.submit(self.client.predict, wrong[0][1])
            refused(among.result, "garbage among right requests", statuses=_BAD)
            for sample, answer in zip(self._burst(), burst, strict=True):
                self._answered(answer.result(), sample)
        names = ", ".join(what for what, _ in wrong)
        return f"refused: an unknown model, {names}; {len(burst)} right ones beside it are answered"

    def _wrong_requests_grpc(self) -> str:
        first = self.expectation.golden.samples[0]
        wrong = _wrong_bodies(first)
        for what, body in wrong:
            refused(partial(self.client.predict_grpc, {"data": body}), what, statuses=_BAD)
        if self.client.grpc_carries_inputs:
            longer = {name: array[..., np.newaxis] for name, array in first.inputs.items()}
            refused(partial(self.client.infer_grpc, longer), "a wrong rank", statuses=_BAD)
            self._tally(self.client.infer_grpc(first.inputs), first)
        return f"refused: {', '.join(what for what, _ in wrong)}, a wrong rank; a right one is still answered"

    # ---- recovery

    def _killed_worker(self) -> str:
        """TorchServe starts a worker again by itself.

        A request that is under way when its worker dies may never be answered (0.12.0), so none is sent until the
        management API names another process.
        """
        victim = self._ready()[0]
        started = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself, which is as good
            victim.kill()
        self._ready(without=victim.pid)
        sample = self.expectation.golden.samples[0]
        self._answered(self._predict(sample), sample)
        return f"answering again {time.monotonic() - started:.1f} s after kill -9"

    def _ready(self, without: int | None = None) -> list[psutil.Process]:
        """Wait until all workers are READY, and none of them is the process ``without``; their processes.

        Only those of the launched server count: its frontend names process -1 for a worker that it has yet to start,
        and for a while one that has ended.
        """
        started = time.monotonic()
        while True:
            found = self._described()
            pids = {worker.pid for worker in found.workers}
            workers = [process for process in _below(self.server_pid) if process.pid in pids]
            if found.ready and workers and len(workers) == len(pids) and without not in pids:
                return workers
            if time.monotonic() - started > _RECOVERY_S:
                what = "no worker" if without is None else "after one was killed, no other worker"
                own = ", ".join(str(process.pid) for process in workers) or "none"
                raise WrongError(
                    f"{what} is READY within {_RECOVERY_S:.0f} s: {found.workers}, the server's own of them: {own}"
                )
            time.sleep(_POLL_S)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:  # the server has ended, and is asked next
        return []


def _wrong_bodies(sample: Sample) -> list[tuple[str, bytes]]:
    wrong = {name: array[..., np.newaxis] for name, array in sample.inputs.items()}
    absent = {f"{name}_absent": array for name, array in sample.inputs.items()}
    rows = [
        ("garbage", b"\x00garbage"),
        ("a wrong rank", json_lists(wrong)),
        ("a wrong input name", json_lists(absent)),
    ]
    return rows


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.inputs.values()]
