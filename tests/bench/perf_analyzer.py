"""NVIDIA's perf_analyzer, as the tritonclient wheel ships it, as a client of a running server."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

Figures = tuple[float, float, float]
"""Inferences per second, p50 in ms, p99 in ms."""
_TIMEOUT_S = 60
_TRIES = 4


def measure(
    model: str,
    url: str,
    folder: Path,
    *,
    concurrency: int,
    requests: int,
    protocol: str = "grpc",
    flags: tuple[str, ...] = (),
) -> Figures:
    """Send requests of batch 1 in a closed loop.

    Args:
        model: on the server.
        url: ``host:port`` of the protocol.
        folder: for its report and libraries.
        concurrency: requests in flight.
        requests: how many are measured.
        protocol: ``grpc`` or ``http``.
        flags: further ones.
    """
    report = folder / "perf.csv"
    argv = [
        Path(sys.executable).with_name("perf_analyzer"), "-m", model, "-i", protocol, "-u", url,
        "--concurrency-range", str(concurrency), "--request-count", str(requests), "--percentile", "50",
        "-f", report, *flags,
    ]  # fmt: skip
    _run(argv, {**os.environ, "LD_LIBRARY_PATH": str(_libraries(folder))})
    with report.open() as stream:
        row = next(csv.DictReader(stream))
    # Its own "Inferences/Second" is quantised under --request-count; a closed loop's rate is concurrency / latency.
    p50_s, p99_s = float(row["p50 latency"]) / 1e6, float(row["p99 latency"]) / 1e6
    return (concurrency / p50_s, p50_s * 1e3, p99_s * 1e3)


def _run(argv: list[str | Path], env: dict[str, str]) -> None:
    """Run it, with more chances than one: some runs of 2.51 connect, send nothing and never end."""
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            if last:
                raise


def _libraries(folder: Path) -> Path:
    """perf_analyzer wants libb64 and libcudart under their own names; the server's wheel has both under hashed ones."""
    links = folder / "lib"
    links.mkdir(exist_ok=True)
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia_pytriton.libs"
    for pattern, name in (("libb64-*", "libb64.so.0d"), ("libcudart-*", "libcudart.so.12")):
        (target,) = wheel.glob(pattern)
        if not (links / name).exists():
            (links / name).symlink_to(target)
    return links
