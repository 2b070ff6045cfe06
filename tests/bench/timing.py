"""Interleaved rounds, so that a busy moment of the machine hits all candidates alike; medians and least times."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*arguments: str | Path) -> None:
    """Run this interpreter quietly; a failure ends the benchmark with its output."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(
            f"bench: python {' '.join(map(str, arguments))} exited with {done.returncode}\n{done.stdout}{done.stderr}"
        )


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate, ``rounds`` of them, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)
