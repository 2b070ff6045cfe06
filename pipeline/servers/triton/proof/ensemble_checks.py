"""Proves that a running server answers image files with the labels that the source model's scores give."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import tritonclient.http as triton_http

from pipeline.base import network
from pipeline.base.values import Array, Progress, SmokeResult, Tensors
from pipeline.images.preprocessing import png
from pipeline.proof import labels
from pipeline.proof.failures import NoAnswerError, RefusedError, WrongError
from pipeline.proof.ledger import Ledger, Row, none_of, refused
from pipeline.servers.triton.client.connection import CONCURRENCY, Connection, GrpcConnection, HttpConnection, connected
from pipeline.servers.triton.client.messages import DEAD_STUB, ModelMetadata, Request, TensorMetadata
from pipeline.servers.triton.proof import served, traffic
from pipeline.servers.triton.proof.bad_images import bad_images
from pipeline.servers.triton.proof.expectation import ImagesExpectation

_refused = partial(refused, statuses=("400", "INVALID_ARGUMENT"), final_words=DEAD_STUB)

Answer = list[tuple[str, float]]


def run(
    http_url: str, grpc_url: str, expectation: ImagesExpectation, *, request_timeout_s: float, progress: Progress
) -> SmokeResult:
    """Run every check; a wrong answer is a failed check, never an exception.

    Args:
        http_url: ``http://host:port``.
        grpc_url: ``host:port``.
        expectation: what is right.
        request_timeout_s: longest wait for one answer.
        progress: told each check's name and the share done.

    Raises:
        SmokeError: neither protocol gives a connection.
    """
    with connected(expectation.model, http_url, grpc_url, request_timeout_s) as (http, grpc, lost):
        ledger = Ledger(alive=expectation.alive, lost=lost, final_words=DEAD_STUB)
        suite = _Suite(expectation, http, grpc, _RawBody(http_url, expectation.config, request_timeout_s))
        if not suite.known:
            ledger.notes.append("no labels were compared: the golden samples are no image files")
        return ledger.run(expectation.model, suite.plan(), progress)


def _images_of(expectation: ImagesExpectation) -> list[bytes]:
    """The golden samples' image files; a black image where they are none."""
    found = [sample.image for sample in expectation.golden.samples if sample.image]
    return found or [png(np.zeros((8, 8, 1), np.uint8))]


def _request(config: Any, images: Sequence[bytes]) -> Request:
    tensor = np.array([[image] for image in images], np.object_)
    return Request(model=config.name, inputs={config.input[0].name: tensor})


class _RawBody:
    """Image files as bare HTTP bodies, as curl sends them."""

    def __init__(self, http_url: str, config: Any, timeout_s: float) -> None:
        self._url, self._timeout_s = f"{http_url}/v2/models/{config.name}/infer", timeout_s
        self._output = config.output[0].name

    def infer(self, image: bytes) -> Array:
        """The output for one image.

        Raises:
            RefusedError: the server answered with an error.
            NoAnswerError: it did not answer.
        """
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
        request = urllib.request.Request(self._url, data=image, headers=headers)  # noqa: S310 - a server's http URL
        try:
            with network.opener.open(request, timeout=self._timeout_s) as reply:
                length = int(reply.headers.get("Inference-Header-Content-Length", 0))
                body = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(error.read().decode(errors="replace"), str(error.code)) from error
        except OSError as error:
            raise NoAnswerError("no answer over HTTP", found=str(error)) from error
        result = triton_http.InferenceServerClient.parse_response_body(body, header_length=length)
        found: Array = result.as_numpy(self._output)
        return found


@dataclass
class _Suite:
    """The checks of one ensemble, and what they share."""

    expectation: ImagesExpectation
    http: HttpConnection
    grpc: GrpcConnection
    raw: _RawBody
    known: bool = field(init=False)
    images: list[bytes] = field(init=False)
    references: list[labels.Reference] = field(init=False)
    merged: str = ""
    max_abs: float = 0.0

    def __post_init__(self) -> None:
        expected = self.expectation
        chosen = [sample for sample in expected.golden.samples if sample.image]
        self.known = bool(chosen)
        self.images = _images_of(expected)
        if self.known:
            scores = np.concatenate([sample.outputs[expected.scores].reshape(1, -1) for sample in chosen])
            self.references = labels.references(scores, expected.after, expected.tolerance)

    def plan(self) -> list[Row]:
        """Every check: its title, its protocol and what it does."""
        both: list[tuple[str, Callable[[Connection], str]]] = [
            ("metadata", self._metadata),
            ("config", self._config),
            ("index", self._index),
            ("images", self._images),
            ("bad images", self._bad_images),
            ("batch limit", self._batch_limit),
            ("concurrency", self._concurrency),
        ]
        rows: list[Row] = [
            (title, connection.protocol, partial(body, connection))
            for title, body in both
            for connection in (self.http, self.grpc)
        ]
        rows.append(("raw body", "http", self._raw_body))
        if self.expectation.config.max_batch_size > 1:
            rows.append(("dynamic batching", "grpc", self._dynamic_batching))
        return rows

    # ---- what the server says

    def _metadata(self, connection: Connection) -> str:
        found = connection.metadata(self.expectation.model)
        text = TensorMetadata(name="", datatype="BYTES", shape=(-1, 1))
        wanted = ModelMetadata(
            name=self.expectation.model,
            platform="ensemble",
            versions=tuple(str(number) for number in sorted(self.expectation.versions)),
            inputs=tuple(replace(text, name=item.name) for item in self.expectation.config.input),
            outputs=tuple(replace(text, name=item.name) for item in self.expectation.config.output),
        )
        none_of([] if found == wanted else [f"expected {wanted}, served {found}"])
        return f"image files in, labels out, versions {', '.join(found.versions)}"

    def _config(self, connection: Connection) -> str:
        found = connection.config(self.expectation.model)
        none_of(served.config_differences(self.expectation.config, found))
        return f"max_batch_size {found.max_batch_size}"

    def _index(self, connection: Connection) -> str:
        index, pinned = connection.index(), self._pinned()
        ready = {(row.name, row.version) for row in index if row.state == "READY"}
        none_of(served.index_differences(index, self.expectation.model, self.expectation.versions))
        none_of([f"{name} is not READY" for name in self.expectation.members if name not in {row[0] for row in ready}])
        lacking = [row for row in pinned.items() if (row[0], str(row[1])) not in ready]
        none_of([f"version {number} of {name}, which it asks, is not READY" for name, number in lacking])
        return f"READY, with {', '.join(self.expectation.members)}"

    def _pinned(self) -> dict[str, int]:
        """The versions of its members that the ensemble names."""
        steps = self.expectation.config.ensemble_scheduling.step
        return {step.model_name: step.model_version for step in steps if step.model_version > 0}

    # ---- answers

    def _request(self, images: Sequence[bytes]) -> Request:
        return _request(self.expectation.config, images)

    def _labels(self, answer: Tensors) -> Array | None:
        return answer.get(self.expectation.config.output[0].name)

    def _judge(self, answer: Array | None, positions: Sequence[int], where: str) -> int:
        """Hold the answers of one request against their references; return how many first labels are the reference's.

        Raises:
            WrongError: one of them is wrong.
        """
        if answer is None or answer.shape != (len(positions), 1):
            raise WrongError(f"{where}: {len(positions)} images, answered by {getattr(answer, 'shape', 'nothing')}")
        first = 0
        for position, value in zip(positions, answer.reshape(-1), strict=True):
            try:
                found = labels.parsed(value)
            except ValueError as error:
                raise WrongError(f"{where}, image {position}: {error}") from error
            if self.known:
                verdict = labels.judged(found, self.references[position], self.expectation.after)
                none_of([f"{where}, image {position}: {text}" for text in verdict.differences])
                first += verdict.first
                self.max_abs = max(self.max_abs, verdict.max_abs)
        return first

    def _agreed(self, first: int, count: int) -> str:
        """The last word on a check's answers.

        Raises:
            WrongError: first labels are the reference's too rarely.
        """
        if not self.known:
            return "answered; not compared"
        least = self.expectation.tolerance.min_top1
        if first < least * count:
            raise WrongError(f"the first label is the reference's for {first} of {count} images, under {least:.2%}")
        limit = max(float(reference.limits.max()) for reference in self.references)
        return (
            f"first label as the reference's for {first} of {count}; probabilities off by at most {self.max_abs:.2g} "
            f"(allowed: at most {limit:.2g}, by class)"
        )

    def _images(self, connection: Connection) -> str:
        """Every image at every size, split: gRPC takes every image alone, HTTP takes every image at larger sizes."""
        sizes = traffic.batch_sizes(self.expectation.config.max_batch_size, joined=True)
        first = count = 0
        for size in sizes:
            everything = len(sizes) == 1 or (size == 1) == (connection.protocol == "grpc")
            for positions in islice(self._positions(size), None if everything else 1):
                answer = connection.infer(self._request([self.images[one] for one in positions]))
                first += self._judge(self._labels(answer), positions, f"batch size {size}")
                count += size
        return f"{count} images at batch {', '.join(map(str, sizes))}: {self._agreed(first, count)}"

    def _positions(self, size: int) -> Iterator[list[int]]:
        """Batches that together hold every image; the last one is filled up with the first images."""
        around = cycle(range(len(self.images)))
        for _ in range(-(-len(self.images) // size)):
            yield list(islice(around, size))

    def _raw_body(self) -> str:
        first = sum(
            self._judge(self.raw.infer(image), [position], "raw body") for position, image in enumerate(self.images)
        )
        return f"{len(self.images)} images as bare bodies: {self._agreed(first, len(self.images))}"

    # ---- refusals

    def _bad_images(self, connection: Connection) -> str:
        bad = bad_images(self.images[0], self.expectation.before)
        for what, image in bad.items():
            _refused(partial(connection.infer, self._request([image])), what)
            if connection.protocol == "http":
                _refused(partial(self.raw.infer, image), f"{what} as a bare body")
        if self.expectation.config.max_batch_size > 1:
            mixed = self._request([self.images[0], bad["text"]])
            _refused(partial(connection.infer, mixed), "text beside an image")
        answer = connection.infer(self._request(self.images[:1]))
        self._judge(self._labels(answer), [0], "an image after the bad ones")
        return f"refused: {', '.join(bad)}; an image is still answered"

    def _batch_limit(self, connection: Connection) -> str:
        size = self.expectation.config.max_batch_size + 1
        _refused(partial(connection.infer, self._request(self.images[:1] * size)), f"a batch of {size}")
        answer = connection.infer(self._request(self.images[:1]))
        self._judge(self._labels(answer), [0], f"an image after a batch of {size}")
        return f"a batch of {size} refused; an image is still answered"

    # ---- concurrency

    def _concurrency(self, connection: Connection) -> str:
        answered, first = self._burst(connection, CONCURRENCY)
        return (
            f"{CONCURRENCY} mixed requests at once, some of them bad, each with its own answer: "
            f"{self._agreed(first, answered)}"
        )

    def _burst(self, connection: Connection, count: int) -> tuple[int, int]:
        """Mixed requests at once, every eighth bad: how many images were answered, and first labels right."""
        sizes = traffic.mixed_sizes(count, self.expectation.config.max_batch_size, joined=True)
        around = cycle(range(len(self.images)))
        batches = [list(islice(around, size)) for size in sizes]
        bad = {position for position in range(count) if position % 8 == 3}
        requests = [
            self._request([b"no image" if position in bad else self.images[one] for one in batch])
            for position, batch in enumerate(batches)
        ]
        member = self.expectation.members[0]
        version = str(self._pinned().get(member) or self._newest(connection, member))
        before = connection.statistics(member, version)
        answers = connection.infer_all(requests)
        answered = first = 0
        for position, (batch, answer) in enumerate(zip(batches, answers, strict=True)):
            where = f"request {position} of {count} at once"
            if position in bad:
                _refused(partial(_raise_refusal, answer), where)
                continue
            if isinstance(answer, RefusedError):
                raise answer
            first += self._judge(self._labels(answer), batch, where)
            answered += len(batch)
        self.merged = self.merged or traffic.merged(before, connection.statistics(member, version), max(sizes))
        return answered, first

    def _newest(self, connection: Connection, member: str) -> int:
        return max(int(row.version) for row in connection.index() if (row.name, row.state) == (member, "READY"))

    def _dynamic_batching(self) -> str:
        """Merging depends on timing: a burst that showed none is followed by larger ones."""
        for count in traffic.BURSTS:
            if self.merged:
                break
            self._burst(self.grpc, count)
        if not self.merged:
            raise WrongError(f"no two requests were prepared as one batch, in bursts of up to {max(traffic.BURSTS)}")
        return f"preprocessing: {self.merged}"


def _raise_refusal(answer: dict[str, Array] | RefusedError) -> None:
    if isinstance(answer, RefusedError):
        raise answer
