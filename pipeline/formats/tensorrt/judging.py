"""The step that judges an engine, in TensorRT on this machine's GPU."""

from __future__ import annotations

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.formats.tensorrt.runtime import TensorRtRuntime
from pipeline.proof import parity


def judge(task: Task, progress: Progress) -> Outcome:
    """Upstream ``engine`` and ``samples``; arguments ``signature``, ``flavour``, ``file`` and those of the gates."""
    given = task.arguments
    file = task.upstream["engine"].directory / given["file"]
    return parity.judged(TensorRtRuntime(file, signatures.from_json(given["signature"]), given["flavour"]), task)
