from __future__ import annotations

import numpy as np
import pytest
from numpy import testing

from pipeline.base.values import GoldenSamples, Sample
from pipeline.servers.triton.client.messages import Class, Request, Statistics, parse_class
from pipeline.servers.triton.proof import traffic


def sample(value: float, length: int = 2) -> Sample:
    array = np.full((1, length), value, np.float32)
    return Sample(inputs={"x": array}, outputs={"y": array * 2})


def golden(*lengths: int) -> GoldenSamples:
    samples = tuple(sample(float(number), length) for number, length in enumerate(lengths))
    return GoldenSamples(samples=samples, batched=True, sha256="")


@pytest.mark.parametrize(
    ("limit", "joined", "sizes"),
    [
        (32, True, (1, 16, 32)),
        (1, True, (1,)),
        (2, True, (1, 2)),
        (3, True, (1, 3)),
        (0, True, (1, 2, 4)),
        (32, False, (1,)),
    ],
)
def test_batch_sizes(limit: int, joined: bool, sizes: tuple[int, ...]) -> None:
    assert traffic.batch_sizes(limit, joined=joined) == sizes


@pytest.mark.parametrize(
    ("limit", "joined", "sizes"),
    [
        (32, True, [1, 2, 3, 4, 1, 2]),
        (4, True, [1, 2, 1, 2, 1, 2]),
        (1, True, [1] * 6),
        (0, True, [1] * 6),
        (32, False, [1] * 6),
    ],
)
def test_mixed_sizes_leave_room_for_merging(limit: int, joined: bool, sizes: list[int]) -> None:
    assert traffic.mixed_sizes(6, limit, joined=joined) == sizes


def test_every_fourth_request_keeps_the_model_busy_where_that_is_wanted() -> None:
    assert traffic.mixed_sizes(6, 32, joined=True, busy=True) == [32, 2, 3, 4, 32, 2]
    assert traffic.mixed_sizes(4, 32, joined=False, busy=True) == [1, 1, 1, 1]


def test_a_burst_has_the_sizes_and_differs_from_neighbour_to_neighbour() -> None:
    chosen = traffic.burst(golden(*[2] * 9), [1, 2, 1, 2, 1, 2])
    assert [len(item.inputs["x"]) for item in chosen] == [1, 2, 1, 2, 1, 2]
    firsts = [item.inputs["x"][0, 0] for item in chosen]
    assert len(set(firsts[::2])) == 3
    for item in chosen:
        testing.assert_array_equal(item.outputs["y"], item.inputs["x"] * 2)


def test_a_burst_takes_the_two_commonest_shapes_one_after_the_other() -> None:
    chosen = traffic.burst(golden(5, 3, 3, 3, 7, 7), [1, 2, 1, 2])
    assert [item.inputs["x"].shape for item in chosen] == [(1, 3), (2, 3), (1, 7), (2, 7)]


def test_repeated_takes_the_first_sample_only() -> None:
    big = traffic.repeated(sample(3.0), 5)
    assert big.inputs["x"].shape == (5, 2)
    assert (big.outputs["y"] == 6.0).all()


def test_wrong_requests_are_each_wrong_in_one_thing() -> None:
    good = Request(model="m", inputs={"ids": np.zeros((1, 7), np.int64), "x": np.zeros((1, 3, 4), np.float32)})
    wrong = dict(traffic.wrong_requests(good, {"ids": [-1], "x": [3, -1]}))
    assert list(wrong) == ["model name", "input name", "dtype", "rank", "dimension"]
    assert wrong["model name"].model == "m_absent"
    assert list(wrong["input name"].inputs) == ["ids_absent", "x"]
    assert wrong["dtype"].inputs["ids"].dtype == np.float32
    assert wrong["rank"].inputs["ids"].shape == (1, 7, 1)
    assert wrong["dimension"].inputs["ids"].shape == (1, 7)
    assert wrong["dimension"].inputs["x"].shape == (1, 4, 4)
    assert good.inputs["x"].shape == (1, 3, 4)


def test_no_dimension_can_be_wrong_where_all_are_dynamic() -> None:
    good = Request(model="m", inputs={"x": np.zeros((2, 7), np.float32)})
    assert [what for what, _ in traffic.wrong_requests(good, {"x": [-1]})] == [
        "model name",
        "input name",
        "dtype",
        "rank",
    ]
    unbatched = dict(traffic.wrong_requests(good, {"x": [2, 7]}))
    assert unbatched["dimension"].inputs["x"].shape == (3, 7)
    assert unbatched["dtype"].inputs["x"].dtype == np.int32


def test_parse_class() -> None:
    assert parse_class(b"12.354098:0:zero") == Class(12.354098, 0, "zero")
    assert parse_class(b"-1.5:3:a: b") == Class(-1.5, 3, "a: b")
    assert parse_class("0.25:7") == Class(0.25, 7, "")
    for text in (b"", b"zero", b"1.0:x:y"):
        with pytest.raises(ValueError):
            parse_class(text)


SCORES = np.array([[1.0, 3.0, 2.0]])
LIMIT = np.full_like(SCORES, 1e-3)


def classes(*texts: str) -> list[list[Class]]:
    return [[parse_class(text) for text in texts]]


def test_right_classes_have_no_differences() -> None:
    rows = classes("3.0000:1:b", "2.0004:2:c", "1.0:0:a")
    assert traffic.class_differences(rows, SCORES, ("a", "b", "c"), limit=LIMIT) == []


def test_a_tie_within_the_tolerance_may_fall_either_way() -> None:
    tied = np.array([[1.0, 3.0, 3.0005]])
    assert traffic.class_differences(classes("3.0003:1:b"), tied, ("a", "b", "c"), limit=LIMIT) == []


@pytest.mark.parametrize(
    ("texts", "labels", "problem"),
    [
        (("3:1:c", "2:2:c", "1:0:a"), ("a", "b", "c"), "sample 0: index 1 is labelled 'c', expected 'b'"),
        (("3:1:b", "2.1:2:c"), ("a", "b", "c"), "sample 0: index 2 scores 2.1, expected 2"),
        (("nan:1:b",), ("a", "b", "c"), "sample 0: index 1 scores nan, expected 3"),
        (("2:2:c", "3:1:b"), ("a", "b", "c"), "sample 0: best is 2:c, expected 1:b"),
        (("3:1",), ("a", "b"), "sample 0: index 1 is labelled '', expected 'b'"),
        (("3:1:b", "2:2:c"), ("a", "b"), "sample 0: index 2 is labelled 'c', expected ''"),
    ],
)
def test_wrong_classes_are_told(texts: tuple[str, ...], labels: tuple[str, ...], problem: str) -> None:
    assert traffic.class_differences(classes(*texts), SCORES, labels, limit=LIMIT) == [problem]


def test_merged() -> None:
    before = Statistics(requests=10, executions=10, batch_sizes={1: 6, 4: 4})
    alone = Statistics(requests=12, executions=12, batch_sizes={1: 7, 4: 5})
    assert traffic.merged(before, alone, 4) == ""
    together = Statistics(requests=14, executions=12, batch_sizes={1: 7, 4: 4, 6: 1})
    assert traffic.merged(before, together, 4) == "4 requests ran as 2 batches, the largest of 6 samples"
    small = Statistics(requests=12, executions=11, batch_sizes={1: 6, 4: 5})
    assert traffic.merged(before, small, 4) == "2 requests ran as 1 batches, the largest of 4 samples"
