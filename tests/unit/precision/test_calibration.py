import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from pipeline.base.errors import StageError
from pipeline.base.values import GoldenSamples
from pipeline.precision import calibration
from tests.unit.precision.nets import convnet, golden, images, made, one_layer, saved, silent

METHODS = ("minmax", "entropy", "percentile")


def measure(folder: Path, samples: GoldenSamples, **options: Any) -> calibration.Ranges:
    folder.mkdir(exist_ok=True)
    file = saved(options.pop("model", one_layer()), folder)
    defaults = {"ops": ["MatMul"], "tensors": ["x", "y", "w"], "method": "minmax", "percentile": 99.99, "limit": 1e4}
    return calibration.measure(file, samples, **{"progress": silent, **defaults, **options})


def ends(ranges: calibration.Ranges, name: str = "x") -> tuple[float, float]:
    return float(ranges.data[name].lowest.min()), float(ranges.data[name].highest.max())


def bell(count: int = 40, lengths: tuple[int, ...] = (16,)) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((1, lengths[i % len(lengths)], 4), np.float32) for i in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_every_sample_counts(tmp_path: Path, method: str) -> None:
    arrays = bell(11)  # no multiple of a chunk
    before = measure(tmp_path / "a", golden(arrays), method=method, percentile=99.999)
    arrays[-1] = arrays[-1] * 3
    after = measure(tmp_path / "b", golden(arrays), method=method, percentile=99.999)
    assert before.samples == after.samples == 11
    assert ends(after)[1] > 1.2 * ends(before)[1]
    assert ends(after)[0] < 1.2 * ends(before)[0]


def test_minmax_is_the_extremes_of_all_samples(tmp_path: Path) -> None:
    arrays = bell(9)
    ranges = measure(tmp_path, golden(arrays))
    stacked = np.concatenate(arrays)
    assert ends(ranges) == (stacked.min(), stacked.max())
    assert sorted(ranges.data.keys()) == ["x", "y"]  # of the weights, no range
    assert ranges.wide == {}


def test_tensors_that_are_not_asked_for_get_no_range(tmp_path: Path) -> None:
    for method in METHODS:
        assert list(measure(tmp_path, golden(bell(4)), method=method, tensors=["y"]).data.keys()) == ["y"]


def test_entropy_cuts_off_what_minmax_keeps(tmp_path: Path) -> None:
    arrays = bell(40)
    arrays[-1][0, 0, 0] = 40
    assert ends(measure(tmp_path, golden(arrays)))[1] == 40
    low, high = ends(measure(tmp_path, golden(arrays), method="entropy"))
    assert 8 < high < 20  # the narrowest candidate of 128 levels in 512 bins is a quarter
    assert low == min(array.min() for array in arrays)


def test_percentile_cuts_off_both_ends(tmp_path: Path) -> None:
    values = np.linspace(-10, 10, 4 * 16 * 40, dtype=np.float32)
    arrays = [part.reshape(1, 16, 4) for part in np.array_split(values, 40)]
    low, high = ends(measure(tmp_path, golden(arrays), method="percentile", percentile=90.0))
    assert (low, high) == pytest.approx((-9, 9), abs=0.02)
    low, high = ends(measure(tmp_path, golden(arrays), method="percentile", percentile=99.999))
    assert (low, high) == pytest.approx((-10, 10), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_sequences_of_differing_lengths(tmp_path: Path, method: str) -> None:
    arrays = bell(12, lengths=(3, 16, 7))
    arrays[1][0, 0, 0], arrays[2][0, 0, 0] = 9, -9
    ranges = measure(tmp_path, golden(arrays), method=method, percentile=99.999)
    assert ranges.samples == 12
    low, high = ends(ranges)
    assert low < -3
    assert high > 3
    if method == "minmax":
        assert (low, high) == (-9, 9)


def test_samples_that_cannot_be_joined_run_one_by_one(tmp_path: Path) -> None:
    ranges = measure(tmp_path, golden(bell(6), batched=False), method="percentile")
    assert ranges.samples == 6


def test_an_outlier_after_tiny_values_makes_no_more_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    chosen = calibration.calibrate.HistogramCollector.get_entropy_threshold

    def spy(self: Any, histogram: Any, levels: int) -> Any:
        counts.append((len(histogram[0]), int(histogram[0].sum())))
        return chosen(self, histogram, levels)

    monkeypatch.setattr(calibration.calibrate.HistogramCollector, "get_entropy_threshold", spy)
    arrays = [array * 1e-4 for array in bell(8)]
    arrays[-1][0, 0, 0] = 1000
    measure(tmp_path, golden(arrays), method="entropy")
    assert counts == [(512, 8 * 16 * 4)] * 2  # and nothing counted but the samples


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_an_empty_range(tmp_path: Path, method: str) -> None:
    zeros = [np.zeros((1, 4, 4), np.float32)] * 5
    assert ends(measure(tmp_path, golden(zeros), method=method)) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("far", [-np.inf, np.finfo(np.float32).min, -1.1e4, np.nan])
def test_masks_get_no_range(tmp_path: Path, method: str, far: float) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="layer"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="masked"),
        helper.make_node("Softmax", ["masked"], ["y"], name="softmax"),
    ]
    mask = np.full(4, far, np.float32)
    if not np.isnan(far):
        mask[:2] = 0
    model = made(nodes, {"w": np.eye(4, dtype=np.float32), "mask": mask}, ["N", "L", 4], ["N", "L", 4])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ranges = measure(
            tmp_path,
            golden(bell(8)),
            model=model,
            method=method,
            ops=["MatMul", "Add"],
            tensors=["x", "scores", "masked"],
        )
    assert list(ranges.wide) == ["masked"]
    assert sorted(ranges.data.keys()) == ["scores", "x"]
    assert [str(item.message) for item in seen] == []


@pytest.mark.parametrize("method", METHODS)
def test_twice_is_the_same(tmp_path: Path, method: str) -> None:
    options = {"model": convnet(), "ops": ["Conv"], "tensors": ["x", "c1", "c2"], "method": method}
    found = [measure(tmp_path / name, images(9), **options) for name in ("a", "b")]
    assert [ends(ranges, name) for ranges in found[:1] for name in ranges.data] == [
        ends(ranges, name) for ranges in found[1:] for name in ranges.data
    ]


def test_progress_rises_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, float | None]] = []
    measure(tmp_path, golden(bell(8)), method="entropy", progress=lambda *update: told.append(update))
    shares = [share for _, share in told if share is not None]
    assert told[0] == ("calibrating: 0 of 8 samples", 0.0)
    assert shares == sorted(shares)
    assert shares[-1] < 1
    assert told[-1] == ("choosing ranges", None)
    assert capfd.readouterr() == ("", "")
    assert not hasattr(calibration.calibrate, "print")


def test_a_sample_the_model_refuses(tmp_path: Path) -> None:
    arrays = [*bell(4), np.zeros((1, 4, 5), np.float32)]
    with pytest.raises(StageError, match="failed on a calibration sample") as raised:
        measure(tmp_path, golden(arrays))
    assert raised.value.where == "x float32[1, 4, 5]"
    assert "Got: 5 Expected: 4" in raised.value.found
    assert not hasattr(calibration.calibrate, "print")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01")
    with pytest.raises(StageError, match="cannot open the model"):
        calibration.measure(
            tmp_path / "bad.onnx",
            golden(bell(1)),
            ops=["MatMul"],
            tensors=["x"],
            method="minmax",
            percentile=99.99,
            limit=1e4,
            progress=silent,
        )


def test_samples_that_are_not_taken_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = calibration.feeds

    def all_but_the_last(samples: GoldenSamples) -> Iterator[Any]:
        yield from list(every(samples))[:-1]

    monkeypatch.setattr(calibration, "feeds", all_but_the_last)
    assert measure(tmp_path, golden(bell(9))).samples == 8
