"""What this process may use of the machine: CPUs and memory, less what a container allows."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # version 2; a container sees its own limits here


def cores(cgroup: Path = _CGROUP) -> int:
    """CPUs that this process may run on, no more than its container's share of time."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    return max(1, min(allowed, math.ceil(int(quota) / int(period)))) if quota.isdigit() else allowed


def free_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Memory that could be had now without swapping; files kept in memory can be dropped."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _text(cgroup / "memory.max"), _text(cgroup / "memory.current")
    if not (limit.isdigit() and used.isdigit()):
        return free
    counts = dict(line.split() for line in _text(cgroup / "memory.stat").splitlines())
    return min(free, max(0, int(limit) - int(used) + int(counts.get("inactive_file", 0))))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
