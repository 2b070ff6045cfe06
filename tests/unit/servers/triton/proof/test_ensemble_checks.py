"""The ensemble's smoke test against a server of our own: right answers pass, and each fault is seen by its check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.values import Array, GoldenSamples, Sample, SmokeResult, Tolerance
from pipeline.images.postprocessing import Postprocessing, answer
from pipeline.images.preprocessing import Preprocessing, RefusedImage, png, tensor
from pipeline.proof.failures import RefusedError
from pipeline.servers.triton.client import connection
from pipeline.servers.triton.client.messages import IndexRow, ModelMetadata, Request, Statistics, TensorMetadata
from pipeline.servers.triton.proof import ensemble_checks
from pipeline.servers.triton.proof.expectation import ImagesExpectation

MEMBERS = ("m_preprocess", "m_onnx", "m_postprocess")
CONFIG = model_config.parse_text(
    'name: "m" platform: "ensemble" max_batch_size: 4 input { name: "image" data_type: TYPE_STRING dims: [1] } '
    'output { name: "labels" data_type: TYPE_STRING dims: [1] }',
    "test",
)
BEFORE = Preprocessing(
    formats=("png",), color="gray", resize=(1, 3), crop=None, interpolation="nearest", scale=255.0, mean=(0.0,),
    std=(1.0,), max_pixels=10_000, dtype="float32", layout="flat",
)  # fmt: skip
AFTER = Postprocessing(activation="softmax", labels=("red", "green", "blue"), top_k=2, threshold=0.0)
IMAGES = [png(np.array([[[20 * n], [255 - 20 * n], [7 * n]]], np.uint8)) for n in range(10)]


def scores(image: bytes) -> Array:
    return tensor(image, BEFORE) * 5


class Server:
    """Answers as an ensemble does; ``change`` spoils what it says."""

    def __init__(self) -> None:
        self.ready = list(MEMBERS)
        self.merging = True
        self.statistics = Statistics(requests=0, executions=0)
        self.answer: Callable[[bytes], bytes] = lambda image: answer(scores(image), AFTER).encode()
        self.refusal = "400"

    def infer(self, images: Sequence[bytes]) -> dict[str, Array] | RefusedError:
        if len(images) > 4:
            return RefusedError("too many", "400")
        try:
            return {"labels": np.array([[self.answer(image)] for image in images], np.object_)}
        except RefusedImage as error:
            return RefusedError(str(error), self.refusal)


class Connection:
    def __init__(self, server: Server, protocol: str) -> None:
        self.server, self.protocol = server, protocol

    def live(self) -> None: ...
    def close(self) -> None: ...

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        tensors = [TensorMetadata(name=name, datatype="BYTES", shape=(-1, 1)) for name in ("image", "labels")]
        return ModelMetadata(
            name="m", platform="ensemble", versions=("2",), inputs=(tensors[0],), outputs=(tensors[1],)
        )

    def config(self, model: str, version: str = ""):
        return CONFIG

    def index(self) -> list[IndexRow]:
        rows = [IndexRow(name=name, version="3", state="READY", reason="") for name in self.server.ready]
        return [*rows, IndexRow(name="m", version="2", state="READY", reason="")]

    def statistics(self, model: str, version: str) -> Statistics:
        assert (model, version) == ("m_preprocess", "3")
        return self.server.statistics

    def infer(self, request: Request) -> dict[str, Array]:
        found = self.server.infer(request.inputs["image"].reshape(-1))
        if isinstance(found, RefusedError):
            raise found
        return found

    def infer_all(self, requests: Sequence[Request]) -> list[dict[str, Array] | RefusedError]:
        before, count = self.server.statistics, len(requests)
        executions = -(-count // 2) if self.server.merging else count
        self.server.statistics = Statistics(
            requests=before.requests + count, executions=before.executions + executions, batch_sizes={1: 1}
        )
        return [self.server.infer(request.inputs["image"].reshape(-1)) for request in requests]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(connection, "HttpConnection", lambda url, timeout_s: Connection(server, "http"))
    monkeypatch.setattr(connection, "GrpcConnection", lambda url, timeout_s: Connection(server, "grpc"))

    class RawBody:
        def __init__(self, url: str, config: object, timeout_s: float) -> None: ...

        def infer(self, image: bytes) -> Array:
            found = server.infer([image])
            if isinstance(found, RefusedError):
                raise found
            return found["labels"]

    monkeypatch.setattr(ensemble_checks, "_RawBody", RawBody)
    return server


def run(*, images: Sequence[bytes] = IMAGES, min_top1: float = 1.0) -> SmokeResult:
    samples = tuple(Sample(inputs={}, outputs={"y": scores(one or IMAGES[0])[None]}, image=one) for one in images)
    expectation = ImagesExpectation(
        model="m",
        members=MEMBERS,
        versions=(2,),
        config=CONFIG,
        golden=GoldenSamples(samples=samples, batched=True, sha256=""),
        scores="y",
        before=BEFORE,
        after=AFTER,
        tolerance=Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.99, min_top1=min_top1),
        alive=lambda: None,
    )
    return ensemble_checks.run("http://h:1", "h:2", expectation, request_timeout_s=1, progress=lambda text, share: None)


def failures(result: SmokeResult) -> dict[tuple[str, str], str]:
    return {(check.name, check.protocol): check.detail for check in result.checks if check.outcome == "failed"}


def test_a_right_server_passes(server: Server) -> None:
    result = run()
    assert failures(result) == {}
    details = {(check.name, check.protocol): check.detail for check in result.checks}
    assert details["images", "http"].startswith(
        "23 images at batch 1, 2, 4: first label as the reference's for 23 of 23"
    )
    assert details["dynamic batching", "grpc"].startswith("preprocessing: 32 requests ran as 16 batches")


def test_swapped_labels_fail_every_check_of_answers(server: Server) -> None:
    swapped = replace(AFTER, labels=("green", "red", "blue"))
    server.answer = lambda image: answer(scores(image), swapped).encode()
    names = {name for name, _ in failures(run())}
    assert names == {"images", "raw body", "bad images", "batch limit", "concurrency", "dynamic batching"}


def test_an_answer_to_another_image_is_wrong(server: Server) -> None:
    right = server.answer

    def answer_of_neighbour(image: bytes) -> bytes:
        return right(IMAGES[5]) if image == IMAGES[4] else right(image)

    server.answer = answer_of_neighbour
    assert "image 4: label" in failures(run())["images", "grpc"]


def test_a_server_that_takes_anything_fails_the_refusals(server: Server) -> None:
    right = server.answer

    def anything(image: bytes) -> bytes:
        try:
            return right(image)
        except RefusedImage:
            return b"[]"

    server.answer = anything
    wrong = failures(run())
    assert {name for name, _ in wrong} == {"bad images", "concurrency", "dynamic batching"}
    assert wrong["bad images", "grpc"] == "no bytes: answered, expected an error"


def test_a_refusal_must_blame_the_request(server: Server) -> None:
    server.refusal = "500"
    assert failures(run())["bad images", "http"].startswith("no bytes: expected status 400, found 500")


def test_answers_that_are_no_labels_are_told(server: Server) -> None:
    server.answer = lambda image: b"oops" if image in IMAGES else answer(scores(image), AFTER).encode()
    assert "no JSON list of labels with probabilities" in failures(run())["raw body", "http"]


def test_a_member_that_is_not_ready_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ready = ["m_preprocess", "m_onnx"]
    assert failures(run())["index", "http"] == "m_postprocess is not READY"


def test_requests_that_are_never_merged_fail_dynamic_batching_only(server: Server) -> None:
    server.merging = False
    wrong = failures(run())
    assert set(wrong) == {("dynamic batching", "grpc")}
    assert wrong["dynamic batching", "grpc"] == "no two requests were prepared as one batch, in bursts of up to 256"


def test_without_image_files_nothing_is_compared_and_that_is_said(server: Server) -> None:
    result = run(images=[b""] * 3)
    assert result.passed
    assert result.checks[0].detail.endswith("no labels were compared: the golden samples are no image files")
