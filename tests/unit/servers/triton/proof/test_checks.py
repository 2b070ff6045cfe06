"""The checks against servers that are wrong in ways a real one is not on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.errors import SmokeError
from pipeline.base.values import Array, GoldenSamples, Sample, Signature, SmokeResult, TensorSpec, Tolerance
from pipeline.proof.failures import NoAnswerError, RefusedError
from pipeline.servers.triton.client import connection
from pipeline.servers.triton.client.messages import IndexRow, ModelMetadata, Request, Statistics, TensorMetadata
from pipeline.servers.triton.proof import checks
from pipeline.servers.triton.proof.expectation import Expectation

Answer = dict[str, Array] | RefusedError
CONFIG = model_config.parse_text(
    'name: "m" max_batch_size: 4 dynamic_batching { } input { name: "x" data_type: TYPE_FP32 dims: [2] } '
    'output { name: "y" data_type: TYPE_FP32 dims: [2] }',
    "test",
)


class Server:
    """Answers y = 2 x for version 1 of model m, refuses what Triton refuses, and merges requests in flight by twos."""

    def __init__(self) -> None:
        self.calls = 0
        self.merging = True
        self.statistics = Statistics(requests=0, executions=0)
        self.change: Callable[[list[Answer]], list[Answer]] = lambda answers: answers
        self.sent: Callable[[Sequence[Request]], None] = lambda requests: None

    def answer(self, request: Request) -> Answer:
        self.calls += 1
        array = request.inputs.get("x")
        if request.model != "m" or request.version not in ("", "1") or array is None or array.dtype != np.float32:
            return RefusedError("refused", "400")
        if array.ndim != 2 or array.shape[1] != 2 or len(array) > 4:
            return RefusedError("refused", "400")
        return {"y": array * 2}


class Connection:
    def __init__(self, server: Server, protocol: str) -> None:
        self.server, self.protocol = server, protocol

    def live(self) -> None: ...
    def close(self) -> None: ...

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        x, y = (TensorMetadata(name=name, datatype="FP32", shape=(-1, 2)) for name in "xy")
        return ModelMetadata(name=model, platform="", versions=("1",), inputs=(x,), outputs=(y,))

    def config(self, model: str, version: str = ""):
        return CONFIG

    def index(self) -> list[IndexRow]:
        return [IndexRow(name="m", version="1", state="READY", reason="")]

    def statistics(self, model: str, version: str) -> Statistics:
        return self.server.statistics

    def infer(self, request: Request) -> dict[str, Array]:
        (answer,) = self.server.change([self.server.answer(request)])
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    def infer_all(self, requests: Sequence[Request]) -> list[Answer]:
        self.server.sent(requests)
        answers = self.server.change([self.server.answer(request) for request in requests])
        before, count = self.server.statistics, len(requests)
        executions = -(-count // 2) if self.server.merging else count
        self.server.statistics = Statistics(
            requests=before.requests + count, executions=before.executions + executions, batch_sizes={1: 1}
        )
        return answers


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(connection, "HttpConnection", lambda url, timeout_s: Connection(server, "http"))
    monkeypatch.setattr(connection, "GrpcConnection", lambda url, timeout_s: Connection(server, "grpc"))
    return server


def run(*, alive: Callable[[], None] = lambda: None, golden: GoldenSamples | None = None) -> SmokeResult:
    spec = {name: TensorSpec(name=name, dtype="float32", shape=("N", 2)) for name in "xy"}
    rows = [np.array([[number, -number]], np.float32) for number in range(10)]
    samples = tuple(Sample(inputs={"x": row}, outputs={"y": row * 2}) for row in rows)
    expected = Expectation(
        model="m",
        signature=Signature(inputs=(spec["x"],), outputs=(spec["y"],), batch="N"),
        max_batch_size=4,
        versions={1: golden or GoldenSamples(samples=samples, batched=True, sha256="")},
        tolerance=Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.99, min_top1=0.99),
        config=CONFIG,
        alive=alive,
    )
    return checks.run(
        "http://far.example:8000", "far.example:8001", expected, request_timeout_s=1, progress=lambda text, share: None
    )


def failures(result: SmokeResult) -> dict[tuple[str, str], str]:
    return {(check.name, check.protocol): check.detail for check in result.checks if check.outcome == "failed"}


def test_a_right_server_elsewhere_passes_and_shared_memory_is_said_not_to_be_tried(server: Server) -> None:
    result = run()
    assert result.passed
    assert not any(check.name == "shared memory" for check in result.checks)
    assert result.checks[0].detail.endswith("; shared memory not tried: the server is on another machine")


def test_swapped_answers_are_told_apart(server: Server) -> None:
    def swap(answers: list[Answer]) -> list[Answer]:
        if len(answers) == 32:
            answers[4], answers[6] = answers[6], answers[4]
        return answers

    server.change = swap
    wrong = failures(run())
    assert set(wrong) == {("concurrency", "http"), ("concurrency", "grpc")}
    assert wrong["concurrency", "http"].startswith("request 4 of 32 at once: y[0, 0] differs by ")
    assert wrong["concurrency", "http"].endswith(" (it is the answer of request 6)")


def test_nan_is_never_right(server: Server) -> None:
    server.change = lambda answers: [
        answer if isinstance(answer, RefusedError) else {"y": answer["y"] * np.float32("nan")} for answer in answers
    ]
    wrong = failures(run())
    assert "y[0, 0] is nan, expected 0.0" in wrong["version 1 samples", "grpc"]
    assert {"wrong requests", "batch limit", "concurrency"} <= {name for name, _ in wrong}


def test_a_server_that_never_merges_fails_dynamic_batching_only(server: Server) -> None:
    server.merging = False
    wrong = failures(run())
    assert wrong == {("dynamic batching", "grpc"): "no two requests were run as one batch, in bursts of up to 256"}


def test_a_model_faster_than_the_client_is_kept_busy_until_requests_merge(server: Server) -> None:
    """Bursts that show no merging are followed by ones of full batches only, which take the model longer."""
    sizes: list[set[int]] = []

    def note(requests: Sequence[Request]) -> None:
        if len(requests) > 32:
            sizes.append({len(request.inputs["x"]) for request in requests})
            server.merging = len(sizes) == 2

    server.merging, server.sent = False, note
    assert run().passed
    assert sizes == [{1, 2, 4}, {1, 2, 4}]


def test_a_model_whose_bursts_seldom_merge_is_given_many(server: Server) -> None:
    """A model of 0.1 ms merged nothing in half of the bursts of 256, on a quiet machine with fast cores."""
    bursts: list[int] = []

    def note(requests: Sequence[Request]) -> None:
        if len(requests) > 32:
            bursts.append(len(requests))
            server.merging = len(bursts) == 12

    server.merging, server.sent = False, note
    assert run().passed
    assert bursts == [64, 128, *[256] * 10]


def test_a_server_that_takes_anything_fails_the_refusals(server: Server) -> None:
    server.change = lambda answers: [
        {"y": np.zeros((1, 2), np.float32)} if isinstance(answer, RefusedError) else answer for answer in answers
    ]
    wrong = failures(run())
    assert wrong["wrong requests", "http"] == "wrong model name: answered, expected an error"
    assert wrong["batch limit", "grpc"] == "a batch of 5: answered, expected an error"
    assert wrong["unserved version", "grpc"] == "version 2: answered, expected an error"


def test_one_request_that_times_out_ends_the_asking_on_both_protocols(server: Server) -> None:
    def hang(answers: list[Answer]) -> list[Answer]:
        raise NoAnswerError("no answer over HTTP within 1 s", timed_out=True)

    server.change = hang
    wrong = failures(run())
    assert server.calls == 1
    assert set(wrong.values()) == {"no answer over HTTP within 1 s"}
    assert ("version 1 samples", "grpc") in wrong
    assert ("metadata", "grpc") not in wrong


def test_a_refusal_by_a_dead_stub_proves_nothing(server: Server) -> None:
    dead = RefusedError("Stub process 'm_0' is not healthy.", "500")
    server.change = lambda answers: [dead if isinstance(answer, RefusedError) else answer for answer in answers]
    wrong = failures(run())
    assert "is not healthy" in wrong["unserved version", "http"]
    assert "is not healthy" in wrong["dynamic batching", "grpc"]


def test_a_dead_process_is_named_in_every_check_left(server: Server) -> None:
    def dead() -> None:
        if server.calls > 3:
            raise SmokeError("server: it ended on signal 9", found="out of memory")

    wrong = failures(run(alive=dead))
    assert set(wrong.values()) == {"server: it ended on signal 9: out of memory"}
    assert ("metadata", "http") not in wrong
    assert ("concurrency", "grpc") in wrong


def test_arg_max_that_agrees_too_rarely_fails_the_samples(server: Server) -> None:
    close = np.array([[1.0, 1.00001]], np.float32)
    samples = tuple(Sample(inputs={"x": close}, outputs={"y": close[:, ::-1] * 2}) for _ in range(4))
    wrong = failures(run(golden=GoldenSamples(samples=samples, batched=True, sha256="")))
    assert wrong["version 1 samples", "grpc"].startswith("arg-max agrees for 0.00% of ")


def test_no_samples_at_all_is_an_error(server: Server) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("N", 2))
    expected = Expectation(
        model="m",
        signature=Signature(inputs=(spec,), outputs=(spec,), batch="N"),
        max_batch_size=4,
        versions={1: None},
        tolerance=Tolerance(max_abs=0, max_rel=0, min_cosine=0, min_top1=0),
        config=CONFIG,
        alive=lambda: None,
    )
    with pytest.raises(SmokeError, match=r"smoke\[m\]: no served version has golden samples"):
        checks.run("http://x:1", "x:2", expected, request_timeout_s=1, progress=lambda text, share: None)
