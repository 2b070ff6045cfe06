"""Ranges of a model's intermediate tensors over real samples, measured with ONNX Runtime's calibrators.

The loop is our own. ``onnxruntime.quantization.quantize_static`` of 1.31.1

* keeps every intermediate tensor of every sample for its histograms: 100 MB a sample for ResNet-50 at 224x224;
* joins them into one array for the percentile method, which fails for sequences of differing lengths;
* lets a histogram grow in steps of the first samples' bins, so that one late outlier makes millions of them;
* gives "entropy" 128 bins for 128 levels: a single candidate, which is MinMax.

Here samples go through in chunks: once for the extremes, and for the histogram methods once more, to be counted in bins
that span the extremes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, calibrate

from pipeline.base.errors import StageError
from pipeline.base.values import Array, GoldenSamples, Progress, described
from pipeline.data import samples as golden_samples

Method = Literal["minmax", "entropy", "percentile"]
Extremes = Mapping[str, tuple[float, float]]

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_CHUNK = 4  # samples; all intermediate tensors of a chunk are in memory at once
_BINS = {"entropy": 512, "percentile": 2048}  # entropy: the better of the two, measured with onnxruntime 1.31.1
_LEVELS = 128  # magnitudes of a signed byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What calibration measured.

    Attributes:
        data: the chosen range of each tensor, as onnxruntime.quantization takes it.
        wide: lowest and highest value of the tensors that go beyond the limit; these are not in ``data``.
        samples: how many ONNX Runtime took.
    """

    data: calibrate.TensorsData
    wide: Extremes
    samples: int


class _Feed(CalibrationDataReader):
    """The inputs of one run; None once they are taken."""

    def __init__(self, inputs: dict[str, Array]) -> None:
        self.inputs: dict[str, Array] | None = inputs

    def get_next(self) -> dict[str, Array] | None:
        inputs, self.inputs = self.inputs, None
        return inputs


def feeds(samples: GoldenSamples) -> Iterator[tuple[dict[str, Array], int]]:
    """Inputs of the runs that take every sample once, joined along dimension 0, with the number of samples in each."""
    for members in golden_samples.chunks(samples, _CHUNK):
        inputs = dict(members[0].inputs)
        if len(members) > 1:
            inputs = {name: np.concatenate([one.inputs[name] for one in members]) for name in inputs}
        yield inputs, len(members)


def measure(
    file: Path,
    samples: GoldenSamples,
    *,
    ops: Sequence[str],
    tensors: Collection[str],
    method: Method,
    percentile: float,
    limit: float,
    progress: Progress,
) -> Ranges:
    """Run every sample, by its inputs, and choose a range for each float tensor of ``tensors`` but weights.

    ``minmax`` takes the extremes; ``entropy`` the range around 0 that loses the least information (Kullback-Leibler
    divergence; Migacz, "8-bit Inference with TensorRT", GTC 2017); ``percentile`` keeps that share of the values, in
    percent, and cuts off the least and the greatest, as many of each. A tensor with a value beyond ±``limit`` gets no
    range. ``ops`` are the operators that read or write the tensors; temporary files are left beside the fp32 ``file``.

    Raises:
        StageError: ONNX Runtime cannot run the model on a sample.
    """
    passes, total = 1 if method == "minmax" else 2, len(samples.samples)

    def tell(step: int, done: int) -> None:
        progress(f"calibrating: {done} of {total} samples", (step + done / total) / passes)

    calibrator = _calibrator(file, ops, "minmax", {})
    taken = _feed(calibrator, samples, partial(tell, 0))
    found = calibrator.compute_data()
    extremes = {
        name: (float(value.lowest.min()), float(value.highest.max()))
        for name, value in found.items()
        if name in tensors
    }
    wide = {name: ends for name, ends in extremes.items() if not max(-ends[0], ends[1]) <= limit}  # NaN too
    if method != "minmax":
        # Not symmetric, which only matters for percentiles and makes ONNX Runtime's counting several times slower.
        options = {"num_bins": _BINS[method], "num_quantized_bins": _LEVELS, "percentile": percentile}
        calibrator = _calibrator(file, ops, method, {**options, "symmetric": False})
        _set_bins(calibrator, {name: ends for name, ends in extremes.items() if name not in wide})
        taken = min(taken, _feed(calibrator, samples, partial(tell, 1)))
        progress("choosing ranges", None)
        with _unprinted():
            found = calibrator.compute_data()
    data = {name: value for name, value in sorted(found.items()) if name in extremes and name not in wide}
    return Ranges(data=calibrate.TensorsData(_METHODS[method], data), wide=wide, samples=taken)


def _calibrator(file: Path, ops: Sequence[str], method: Method, options: Mapping[str, Any]) -> Any:
    """A model opened with what it computes inside as further outputs."""
    try:
        return calibrate.create_calibrator(
            file,
            list(ops),
            augmented_model_path=str(file.with_name(f"{method}.onnx")),
            calibrate_method=_METHODS[method],
            use_external_data_format=True,
            extra_options=dict(options),
        )
    except Exception as error:
        raise StageError("int8: ONNX Runtime cannot open the model for calibration", found=str(error)) from error


def _feed(calibrator: Any, samples: GoldenSamples, told: Callable[[int], None]) -> int:
    """Run all samples, chunk by chunk; returns how many the calibrator took."""
    done = 0
    for inputs, size in feeds(samples):
        told(done)
        reader = _Feed(inputs)
        try:
            with _unprinted(), warnings.catch_warnings():
                # A tensor that is NaN throughout; its range is NaN, and then it is left as it is.
                warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
                calibrator.collect_data(reader)
        except Exception as error:
            raise StageError(
                "int8: the fp32 model failed on a calibration sample", found=str(error), where=described(inputs)
            ) from error
        done += size if reader.inputs is None else 0
    return done


def _set_bins(calibrator: Any, extremes: Extremes) -> None:
    """Let the histograms of these tensors, and of no others, span what is known to come."""
    calibrator.tensors_to_calibrate = set(extremes)
    calibrator.collector = calibrate.HistogramCollector(
        method=calibrator.method,
        symmetric=calibrator.symmetric,
        num_bins=calibrator.num_bins,
        num_quantized_bins=calibrator.num_quantized_bins,
        percentile=calibrator.percentile,
        scenario=calibrator.scenario,
    )
    with _unprinted():
        calibrator.collector.collect({name: np.array([0, *ends], np.float32) for name, ends in extremes.items()})
    for counts, *_ in calibrator.collector.get_histogram_dict().values():
        counts[:] = 0


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Give onnxruntime's calibration module a ``print`` of its own, which is silent.

    It prints its doings to standard output, as of 1.31.1; redirecting that would swallow other threads' output too.
    """
    vars(calibrate)["print"] = lambda *args: None
    try:
        yield
    finally:
        del vars(calibrate)["print"]
