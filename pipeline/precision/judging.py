"""The step that judges a graph of less precision, with the arithmetic that will run it.

TensorRT's own needs a GPU; ONNX Runtime's CPU would add faults of its own: 8-bit sums that saturate without VNNI, and
float16 operators computed in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base import signatures
from pipeline.base.files import canonical_json
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, Runtime, Signature
from pipeline.precision.table import PRECISIONS
from pipeline.proof import parity

_JUDGEMENT = "judgement.json"


def judge(task: Task, progress: Progress) -> Outcome:
    """Upstream ``graph`` and ``samples``; arguments ``signature``, ``precision``, ``consumer``, and the gates'."""
    given, graph = task.step.arguments, task.upstream["graph"]
    if known := _kept(graph.directory, given):
        return Outcome(values=known)
    signature = signatures.from_json(given["signature"])
    return parity.judged(opened(graph.path, signature, given["precision"], given["consumer"]), task)


def keep(folder: Path, judged: Mapping[str, Any], found: parity.Judgement) -> None:
    """Write down a judgement of the graph in a folder, for ``judge``."""
    record = {"judged": dict(judged), "found": asdict(found)}
    (folder / _JUDGEMENT).write_text(canonical_json(record))


def _kept(folder: Path, judged: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was found of the graph in a folder, where just this was asked before."""
    path = folder / _JUDGEMENT
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    same = canonical_json(record.get("judged")) == canonical_json(dict(judged))
    return record["found"] if same else None


def opened(path: Path, signature: Signature, precision: str, consumer: str) -> Runtime:
    """A graph as its consumer computes it: as it will be served or, where it is bound for TensorRT, with its rounding.

    Raises:
        StageError: it does not load.
    """
    return PRECISIONS[precision].graphs.opened(path, signature, consumer)
