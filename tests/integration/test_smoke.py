"""The smoke test against the real tritonserver: what is right passes, what is wrong is caught."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.base.errors import SmokeError
from pipeline.base.values import RunningServer, Sample, Signature, TensorSpec
from pipeline.proof.failures import NoAnswerError
from pipeline.servers.triton import embedded as triton
from pipeline.servers.triton.client.connection import HttpConnection
from pipeline.servers.triton.client.messages import Request
from pipeline.servers.triton.client.readiness import ready_versions
from pipeline.servers.triton.proof import checks
from pipeline.servers.triton.proof.expectation import Expectation
from tests.integration.shop import (
    LINEAR,
    WEIGHTS,
    Shop,
    add_linear,
    add_text,
    expectation,
    failures,
    golden_of,
    linear_golden,
    open_shop,
    run,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("shop")) as opened:
        yield opened


def test_a_right_model_passes_every_check(shop: Shop) -> None:
    told: list[tuple[str, float | None]] = []
    expected = expectation("good", shop.configs["good"])
    result = run(shop.server, expected, progress=lambda text, share: told.append((text, share)))
    assert failures(result) == {}
    names = {(check.name, check.protocol) for check in result.checks}
    both = ("metadata", "config", "index", "version 1 samples", "unserved version", "wrong requests", "batch limit",
            "labels", "concurrency")  # fmt: skip
    assert names == {(name, protocol) for name in both for protocol in ("http", "grpc")} | {
        ("shared memory", "grpc"), ("dynamic batching", "grpc"),
    }  # fmt: skip
    details = {(check.name, check.protocol): check.detail for check in result.checks}
    assert details["version 1 samples", "grpc"].startswith("21 samples at batch 1, 4, 8: max abs ")
    assert details["labels", "http"] == "3 labels of logits in 8 samples"
    assert details["batch limit", "grpc"] == "a batch of 9 refused; a right one is still answered"
    assert "requests ran as" in details["dynamic batching", "grpc"]
    assert "shared memory" not in details["metadata", "http"]
    assert told[0] == ("smoke[good]: metadata (http)", 0.0)
    assert told[-1] == ("smoke[good]: done", 1.0)
    assert not list(Path("/dev/shm").glob(f"smoke-{os.getpid()}-*"))


def test_swapped_labels_are_caught_and_nothing_else(shop: Shop) -> None:
    wrong = failures(run(shop.server, expectation("swapped", shop.configs["swapped"])))
    assert set(wrong) == {("labels", "http"), ("labels", "grpc")}
    assert "index 1 is labelled 'cat', expected 'bee: the small one'" in wrong["labels", "http"]


def test_other_weights_are_caught_with_the_numbers(shop: Shop) -> None:
    expected = expectation("good", shop.configs["good"], versions={1: linear_golden(WEIGHTS + 0.01)})
    wrong = failures(run(shop.server, expected))
    assert {("version 1 samples", "http"), ("version 1 samples", "grpc"), ("concurrency", "grpc")} <= set(wrong)
    assert "batch size 1, request 0: logits[0, " in wrong["version 1 samples", "grpc"]
    first = expected.versions[1].samples[0]
    served = first.inputs["x"] @ WEIGHTS
    axis = int(np.argmax(np.abs(served - first.outputs["logits"])))
    assert (
        f"logits[0, {axis}]: expected {first.outputs['logits'][0, axis]:.6g}, got {served[0, axis]:.6g}"
        in (wrong["version 1 samples", "grpc"])
    )
    assert ("metadata", "http") not in wrong


def test_each_version_is_held_against_its_own_samples(shop: Shop) -> None:
    config = shop.configs["two"]
    right = {1: linear_golden(), 2: linear_golden(2 * WEIGHTS)}
    result = run(shop.server, expectation("two", config, versions=right))
    assert failures(result) == {}
    crossed = failures(run(shop.server, expectation("two", config, versions={1: right[2], 2: right[2]})))
    assert set(crossed) == {("version 1 samples", "http"), ("version 1 samples", "grpc")}
    unknown = run(shop.server, expectation("two", config, versions={1: None, 2: right[2]}))
    assert failures(unknown) == {}
    assert any("its reference samples are not at hand" in check.detail for check in unknown.checks)


def test_missing_and_unexpected_versions_are_caught(shop: Shop) -> None:
    golden = linear_golden()
    wrong = failures(run(shop.server, expectation("good", shop.configs["good"], versions={1: golden, 2: golden})))
    assert wrong["metadata", "http"] == "versions: expected 1, 2, served 1"
    assert wrong["index", "grpc"] == "version 2: not in the index"
    assert "version 2" in wrong["version 2 samples", "http"] or "unknown" in wrong["version 2 samples", "http"]
    wrong = failures(run(shop.server, expectation("two", shop.configs["two"], versions={1: golden})))
    assert wrong["metadata", "grpc"] == "versions: expected 1, served 1, 2"
    assert wrong["unserved version", "http"] == "version 2: answered, expected an error"


def test_a_served_config_that_differs_is_caught(shop: Shop) -> None:
    text = (
        shop.configs["good"]
        .replace("max_batch_size: 8", "max_batch_size: 4")
        .replace("microseconds: 100", "microseconds: 7")
    )
    wrong = failures(run(shop.server, expectation("good", text)))
    assert wrong["config", "http"] == wrong["config", "grpc"]
    assert "max_batch_size: expected 4, served 8" in wrong["config", "grpc"]
    assert "dynamic_batching.max_queue_delay_microseconds: expected 7, served 100" in wrong["config", "grpc"]
    assert wrong["batch limit", "http"] == "a batch of 5: answered, expected an error"


def test_a_signature_that_differs_is_caught(shop: Shop) -> None:
    signature = replace(LINEAR, inputs=(replace(LINEAR.inputs[0], dtype="float64", shape=("N", 5)),))
    wrong = failures(run(shop.server, expectation("good", shop.configs["good"], signature=signature)))
    assert wrong["metadata", "http"] == "input x: expected FP64[-1, 5], served FP32[-1, 4]"


def test_two_integer_inputs_of_varying_length(shop: Shop) -> None:
    generator = np.random.default_rng(1)
    samples = []
    for length in (3, 5, 3, 7, 5, 3, 9, 3):
        ids = generator.integers(0, 100, size=(1, length))
        mask = (generator.random(size=(1, length)) < 0.7).astype(np.int64)
        outputs = {
            "total": (ids * mask).sum(axis=1, keepdims=True),
            "share": mask.astype(np.float32).mean(axis=1, keepdims=True),
        }
        samples.append(Sample(inputs={"ids": ids, "mask": mask}, outputs=outputs))
    signature = Signature(
        inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("N", "L")) for name in ("ids", "mask")),
        outputs=(
            TensorSpec(name="total", dtype="int64", shape=("N", 1)),
            TensorSpec(name="share", dtype="float32", shape=("N", 1)),
        ),
        batch="N",
    )
    expected = expectation("pair", shop.configs["pair"], signature=signature, versions={1: golden_of(samples)})
    result = run(shop.server, expected)
    assert failures(result) == {}
    assert any(check.name == "dynamic batching" for check in result.checks)
    off_by_one = replace(samples[3], outputs={**samples[3].outputs, "total": samples[3].outputs["total"] + 1})
    broken = golden_of([*samples[:3], off_by_one, *samples[4:]])
    wrong = failures(run(shop.server, replace(expected, versions={1: broken})))
    assert "batch size 1, request 3: total[0, 0] is " in wrong["version 1 samples", "grpc"]


def test_a_model_without_a_batch_dimension(shop: Shop) -> None:
    generator = np.random.default_rng(2)
    arrays = [generator.normal(size=(length, 4)).astype(np.float32) for length in (1, 2, 2, 6)]
    samples = [Sample(inputs={"x": array}, outputs={"total": array.sum(axis=1)}) for array in arrays]
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("L", 4)),),
        outputs=(TensorSpec(name="total", dtype="float32", shape=("L",)),),
        batch=None,
    )
    golden = golden_of(samples, batched=False)
    result = run(shop.server, expectation("rows", shop.configs["rows"], signature=signature, versions={1: golden}))
    assert failures(result) == {}
    assert {"batch limit", "dynamic batching"}.isdisjoint(check.name for check in result.checks)


def test_a_dynamic_first_dimension_that_triton_does_not_batch(shop: Shop) -> None:
    result = run(shop.server, expectation("plain", shop.configs["plain"]))
    assert failures(result) == {}
    details = {(check.name, check.protocol): check.detail for check in result.checks}
    assert details["version 1 samples", "http"].startswith("21 samples at batch 1, 2, 4: ")
    assert ("labels", "grpc") in details
    assert ("batch limit", "http") not in details


def test_no_server_is_an_error_and_one_port_is_not(shop: Shop) -> None:
    expected = expectation("good", shop.configs["good"])
    with pytest.raises(SmokeError, match=r"smoke\[good\]: no server answers at http://127.0.0.1:9 or 127.0.0.1:9"):
        checks.run(
            "http://127.0.0.1:9", "127.0.0.1:9", expected, request_timeout_s=5, progress=lambda text, share: None
        )
    result = checks.run(
        shop.server.http_url, "127.0.0.1:9", expected, request_timeout_s=5, progress=lambda text, share: None
    )
    wrong = failures(result)
    assert {protocol for _, protocol in wrong} == {"grpc"}, wrong
    assert wrong["concurrency", "grpc"].startswith("no connection over gRPC: ")
    assert any(check.name == "concurrency" and check.outcome == "passed" for check in result.checks)


def test_ready_versions(shop: Shop) -> None:
    assert ready_versions(shop.server.http_url, "two") == [1, 2]
    with pytest.raises(SmokeError, match=r"served there: colour, good, pair, plain, rows, swapped, two"):
        ready_versions(shop.server.http_url, "absent")
    with pytest.raises(SmokeError, match=r"no Triton server answers at http://127.0.0.1:9"):
        ready_versions("http://127.0.0.1:9", "two")
    with pytest.raises(SmokeError, match=r"no Triton server answers at"):
        ready_versions(shop.server.metrics_url, "two")


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[tuple[RunningServer, Expectation]]:
    """A server of its own for one good model, to be hurt."""
    config = add_linear(tmp_path / "repository", "good")
    log = tmp_path / "server.log"
    with triton.embedded(
        tmp_path / "repository", ["good"], log_path=log, start_timeout_s=90, exit_timeout_s=3
    ) as served:
        yield served.server, replace(expectation("good", config), alive=served.check_alive)


def test_a_killed_stub_is_noticed_though_the_server_says_ready(lonely: tuple[RunningServer, Expectation]) -> None:
    server, expected = lonely
    children = psutil.Process(server.pid).children(recursive=True)
    (stub,) = [child for child in children if "triton_python_backend_stub" in " ".join(child.cmdline())]
    stub.kill()
    started = time.monotonic()
    result = run(server, expected)
    assert time.monotonic() - started < 30
    wrong = failures(result)
    assert ("index", "http") not in wrong  # READY all the same
    for name in ("version 1 samples", "wrong requests", "concurrency", "labels"):
        for protocol in ("http", "grpc"):
            assert "is not healthy" in wrong[name, protocol]


def test_a_server_killed_midway_fails_the_rest_at_once(lonely: tuple[RunningServer, Expectation]) -> None:
    server, expected = lonely
    killed_at = 0.0

    def progress(text: str, share: float | None) -> None:
        nonlocal killed_at
        if "labels (http)" in text:
            os.kill(server.pid, signal.SIGKILL)
            killed_at = time.monotonic()

    result = run(server, expected, progress=progress, timeout_s=60)
    assert time.monotonic() - killed_at < 5
    wrong = failures(result)
    assert ("wrong requests", "grpc") not in wrong
    for row in (("labels", "grpc"), ("concurrency", "http"), ("shared memory", "grpc"), ("dynamic batching", "grpc")):
        assert "server: it ended on signal 9" in wrong[row]


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_never_answers_does_not_hold_us(capfd: pytest.CaptureFixture[str]) -> None:
    expected = expectation("good", add_text())
    started = time.monotonic()
    with silent_server() as http, silent_server() as grpc, pytest.raises(SmokeError) as caught:
        checks.run(f"http://{http}", grpc, expected, request_timeout_s=0.4, progress=lambda text, share: None)
    assert time.monotonic() - started < 3
    assert "no answer over HTTP within 0.4 s; no " in caught.value.found
    request = Request(model="good", inputs={"x": np.zeros((1, 4), np.float32)}, outputs=("logits",))
    for url in ("127.0.0.1:9", http):
        with contextlib.closing(HttpConnection(url, 0.4)) as connection, pytest.raises(NoAnswerError):
            connection.infer_all([request] * 4)
    assert "Traceback" not in capfd.readouterr().err
