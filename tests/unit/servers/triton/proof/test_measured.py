from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.values import GoldenSamples, Sample, Signature, TensorSpec, Tolerance
from pipeline.servers.triton.client.messages import Request
from pipeline.servers.triton.proof import measured
from pipeline.servers.triton.proof.expectation import Expectation


def golden(count: int) -> GoldenSamples:
    rows = [np.full((1, 2), number, np.float32) for number in range(count)]
    return GoldenSamples(
        samples=tuple(Sample(inputs={"x": row}, outputs={"y": row}) for row in rows), batched=True, sha256=""
    )


class Connection:
    def __init__(self) -> None:
        self.requests: list[Request] = []

    def infer(self, request: Request) -> None:
        self.requests.append(request)


@pytest.mark.parametrize(("queue", "in_flight"), [("", 8), ("max_queue_size: 3", 3), ("max_queue_size: 100", 8)])
def test_a_model_is_asked_one_sample_at_a_time_and_never_more_than_its_queue_takes(queue: str, in_flight: int) -> None:
    config = model_config.parse_text(
        f'name: "m" max_batch_size: 4 dynamic_batching {{ default_queue_policy {{ {queue} }} }} '
        'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }',
        "test",
    )
    x, y = (TensorSpec(name=name, dtype="float32", shape=("N", 2)) for name in "xy")
    expectation = Expectation(
        model="m",
        signature=Signature(inputs=(x,), outputs=(y,), batch="N"),
        max_batch_size=4,
        versions={1: golden(3), 2: golden(5), 3: None},
        tolerance=Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.9999, min_top1=0.99),
        config=config,
        alive=lambda: None,
    )
    connection = Connection()
    subject = measured.subject(connection, expectation)
    assert subject.in_flight == in_flight
    for turn in range(6):
        subject.ask(turn)
    assert {request.version for request in connection.requests} == {"2"}
    assert [request.inputs["x"].shape for request in connection.requests] == [(1, 2)] * 6
    values = [float(request.inputs["x"][0, 0]) for request in connection.requests]
    assert len(set(values[:5])) == 5
    assert values[5] == values[0]


def test_an_ensemble_is_asked_with_image_files_alone() -> None:
    config = model_config.parse_text('name: "m" input { name: "IMAGE" data_type: TYPE_STRING dims: [1] }', "test")
    samples = tuple(
        replace(sample, image=image) for sample, image in zip(golden(3).samples, (b"a", b"", b"c"), strict=True)
    )
    connection = Connection()
    subject = measured.images(connection, config, replace(golden(3), samples=samples))
    for turn in range(3):
        subject.ask(turn)
    assert [request.inputs["IMAGE"].tolist() for request in connection.requests] == [[[b"a"]], [[b"c"]], [[b"a"]]]
    assert {request.model for request in connection.requests} == {"m"}
