"""The step that judges an ONNX file as ONNX Runtime serves it; apart, so that no source's key follows proof/."""

from __future__ import annotations

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.proof import parity


def judge(task: Task, progress: Progress) -> Outcome:
    """Upstream ``graph`` and ``samples``; arguments ``signature`` and those of ``parity.Gates``."""
    runtime = OnnxRuntime(task.upstream["graph"].path, signatures.from_json(task.arguments["signature"]))
    return parity.judged(runtime, task)
