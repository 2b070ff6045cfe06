"""What the tool costs when there is nothing to do: ``plan`` and a fully cached build, against starting Python."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.bench.timing import interleaved, median, python, table

CONFIG = "configs/from_onnx.yaml"


def measure(folder: Path) -> str:
    """Ten rounds each; milliseconds and the ratio to ``python -c pass``."""
    shared = ("--repository", folder / "repository", "--work-dir", folder / "work")
    python("-m", "pipeline", "build", CONFIG, "--no-serve", *shared)
    candidates = {
        "python -c pass": partial(python, "-c", "pass"),
        "pipeline plan": partial(python, "-m", "pipeline", "plan", CONFIG, *shared),
        "pipeline build --no-serve, all cached": partial(
            python, "-m", "pipeline", "build", CONFIG, "--no-serve", *shared
        ),
    }
    seconds = interleaved(candidates, rounds=10)
    base = median(seconds["python -c pass"])
    rows = [(name, f"{median(times) * 1e3:.0f}", f"{median(times) / base:.0f}") for name, times in seconds.items()]
    return table(("command", "median ms", "× python -c pass"), rows)
