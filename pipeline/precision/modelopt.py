"""int8 for TensorRT with NVIDIA's ModelOpt, which knows best what TensorRT fuses, where it is installed.

It runs in a process of its own: it replaces functions of onnxruntime.quantization for as long as its process lives, as
of 0.47.0, and prints and logs. It is installed without its dependencies, which ask for onnxruntime-gpu, cupy and an
older onnx; this use of it needs three more packages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader

from pipeline.base import command
from pipeline.base.errors import StageError
from pipeline.base.values import Array, GoldenSamples
from pipeline.precision import calibration

_NEEDED = "onnx-graphsurgeon, lief, nvidia-ml-py"
_TIMEOUT_S = 7200.0
_OUT, _REQUEST, _TAKEN, _FEED = "modelopt.onnx", "modelopt.json", "taken.json", "feed_{}.npz"


def version() -> str | None:
    """The installed nvidia-modelopt's version; None without it."""
    if importlib.util.find_spec("modelopt") is None:
        return None
    try:
        return importlib.metadata.version("nvidia-modelopt")
    except importlib.metadata.PackageNotFoundError:
        return None  # something else by that name


def quantize(
    file: Path, samples: GoldenSamples, *, keep_ops: Sequence[str], keep_nodes: Collection[str]
) -> tuple[onnx.ModelProto, int]:
    """Quantise to S8S8 where TensorRT gains by it, with the extremes over all samples as ranges.

    Args:
        file: fp32 ONNX model with a name on every node; other files are left beside it.
        samples: only the inputs are used.
        keep_ops: operators left in fp32.
        keep_nodes: names of nodes left in fp32.

    Returns:
        The quantised model, and how many samples the calibrator took.

    Raises:
        StageError: ModelOpt failed.
    """
    folder = file.parent
    names = list(samples.samples[0].inputs)
    sizes = []
    for number, (inputs, size) in enumerate(calibration.feeds(samples)):
        np.savez(folder / _FEED.format(number), *(inputs[name] for name in names))
        sizes.append(size)
    request = {
        "file": str(file),
        "names": names,
        "sizes": sizes,
        "keep_ops": [*keep_ops],
        "keep_nodes": sorted(keep_nodes),
    }
    (folder / _REQUEST).write_text(json.dumps(request))
    argv = [sys.executable, "-m", "pipeline.precision.modelopt", str(folder)]
    try:
        command.run(argv, timeout_s=_TIMEOUT_S, env={**os.environ, "TMPDIR": str(folder)})  # it leaves files there
    except StageError as error:
        hint = f"install what it needs ({_NEEDED}), or remove nvidia-modelopt to use the ONNX Runtime recipe"
        raise StageError("int8: ModelOpt failed", found=f"{error.what}: {error.found}", hint=hint) from error
    return onnx.load(str(folder / _OUT)), json.loads((folder / _TAKEN).read_text())


class _Reader(CalibrationDataReader):
    """The parent's files, one run each; ModelOpt looks at the first before it starts."""

    def __init__(self, folder: Path, names: Sequence[str], sizes: Sequence[int]) -> None:
        self._folder, self._names, self._sizes = folder, names, sizes
        self._next = 0

    def get_next(self) -> dict[str, Array] | None:
        if self._next == len(self._sizes):
            return None
        self._next += 1
        return self._read(self._next - 1)

    def get_first(self) -> dict[str, Array]:
        return self._read(0)

    def rewind(self) -> None:
        self._next = 0

    @property
    def taken(self) -> int:
        return sum(self._sizes[: self._next])

    def _read(self, number: int) -> dict[str, Array]:
        with np.load(self._folder / _FEED.format(number), allow_pickle=False) as archive:
            return dict(zip(self._names, archive.values(), strict=True))


def _main(folder: Path) -> None:
    """The child: read the request, quantise, leave the model and the number of samples taken."""
    modelopt = importlib.import_module("modelopt.onnx.quantization")
    request = json.loads((folder / _REQUEST).read_text())
    reader = _Reader(folder, request["names"], request["sizes"])
    modelopt.quantize(
        request["file"],
        quantize_mode="int8",
        calibration_data_reader=reader,
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        op_types_to_exclude=request["keep_ops"],
        nodes_to_exclude=[f"{re.escape(name)}$" for name in request["keep_nodes"]],  # it takes patterns
        use_external_data_format=True,
        output_path=str(folder / _OUT),
        log_level="ERROR",
    )
    (folder / _TAKEN).write_text(json.dumps(reader.taken))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
