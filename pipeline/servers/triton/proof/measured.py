"""What is measured of a served model: its requests, and the memory of the processes that answer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.base.values import GoldenSamples
from pipeline.proof.measure import CONCURRENCY, Subject
from pipeline.servers.triton.client.connection import GrpcConnection
from pipeline.servers.triton.client.messages import Request
from pipeline.servers.triton.proof.asking import AskingJudge
from pipeline.servers.triton.proof.expectation import Expectation

_SAMPLES = 64  # different golden samples sent in turn


def subject(connection: GrpcConnection, expectation: Expectation) -> Subject:
    """A served model that has passed its smoke test: its newest version of known samples, one sample to a request."""
    known = {version: golden for version, golden in expectation.versions.items() if golden is not None}
    newest = max(known)
    judge = AskingJudge(expectation)
    requests = [judge.request(sample, str(newest)) for sample in known[newest].samples[:_SAMPLES]]
    bound = expectation.config.dynamic_batching.default_queue_policy.max_queue_size  # more would rightly be refused
    return Subject(
        ask=lambda turn: connection.infer(requests[turn % len(requests)]),
        in_flight=min(CONCURRENCY, bound or CONCURRENCY),
    )


def images(connection: GrpcConnection, config: Any, golden: GoldenSamples) -> Subject:
    """A served ensemble that takes image files: the golden samples', of which there is at least one."""
    name = config.input[0].name
    files = [sample.image for sample in golden.samples if sample.image][:_SAMPLES]
    requests = [Request(model=config.name, inputs={name: np.array([[file]], np.object_)}) for file in files]
    return Subject(ask=lambda turn: connection.infer(requests[turn % len(requests)]))


def resident_bytes(server_pid: int, folder: Path) -> int | None:
    """Resident memory of the server's child processes that run a model's files; None where there are none.

    A Python backend runs each instance in a process of its own, whose command line holds the path of the model's file
    (Triton 2.51.0). A C++ backend runs inside the server, and a container's processes are not ours to see.

    Args:
        server_pid: process of the server.
        folder: the version directory, as the server was told it.
    """
    total = 0
    with contextlib.suppress(psutil.Error):  # the server has ended
        for child in psutil.Process(server_pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word.startswith(f"{folder}/") for word in child.cmdline()):
                    total += child.memory_info().rss
    return total or None
