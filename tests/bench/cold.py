"""A cold ``build --no-serve`` of resnet.yaml's fp32 variants against the same library calls as a flat script."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from tests.bench.timing import interleaved, python, table


def measure(folder: Path) -> str:
    """Two rounds each, least time; the goal is a ratio of at most 1.10."""

    def build() -> None:
        for name in ("repository", "repository.state", "work"):
            shutil.rmtree(folder / name, ignore_errors=True)
        python(
            "-m", "pipeline", "build", "configs/resnet.yaml", "--no-serve",
            "--variant", "onnx", "--variant", "torchscript",
            "--repository", folder / "repository", "--work-dir", folder / "work",
        )  # fmt: skip

    flat = partial(python, Path(__file__).with_name("flat_resnet.py"), folder / "flat")
    seconds = interleaved({"flat script": flat, "pipeline build --no-serve": build}, rounds=2)
    base = min(seconds["flat script"])
    rows = [(name, f"{min(times):.1f}", f"{min(times) / base:.2f}") for name, times in seconds.items()]
    return table(("resnet.yaml, cold, onnx and torchscript", "s", "ratio"), rows)
