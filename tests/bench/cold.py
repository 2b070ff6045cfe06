"""A cold ``build --no-serve`` of resnet.yaml against the same library calls as a flat script, one after the other."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from tests.bench.timing import interleaved, python, table

_FP32 = ("onnx", "torchscript")
_ALL = (*_FP32, "onnx_fp16", "onnx_int8", "trt_fp16", "trt_int8")
_ROUNDS = 2


def measure(folder: Path) -> str:
    """Two rounds each, least time; the goals: at most 1.05 times as long for the fp32 variants, 0.95 for all six."""
    rows = [row for keys in (_FP32, _ALL) for row in _rows(folder, keys)]
    return table(("resnet.yaml, cold", "s", "ratio"), rows)


def _rows(folder: Path, keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    def build() -> None:
        for name in ("repository", "repository.state", "work"):
            shutil.rmtree(folder / name, ignore_errors=True)
        python(
            "-m", "pipeline", "build", "configs/resnet.yaml", "--no-serve",
            *(word for key in keys for word in ("--variant", key)),
            "--repository", folder / "repository", "--work-dir", folder / "work",
        )  # fmt: skip

    flat = partial(python, Path(__file__).with_name("flat_resnet.py"), folder / "flat", *keys)
    named = f"{len(keys)} variants"
    seconds = interleaved({f"flat script, {named}": flat, f"pipeline build --no-serve, {named}": build}, rounds=_ROUNDS)
    base = min(next(iter(seconds.values())))
    return [(name, f"{min(times):.1f}", f"{min(times) / base:.2f}") for name, times in seconds.items()]
