"""The step that makes a graph of less precision, repairs included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base import signatures
from pipeline.base.step import Outcome, Task
from pipeline.base.values import GoldenSamples, Progress
from pipeline.data import samples
from pipeline.precision import judging, repair
from pipeline.precision.table import PRECISIONS
from pipeline.proof import parity


def reduce(task: Task, progress: Progress) -> Outcome:
    """Upstream ``export``, ``samples`` and, for int8, ``calibration``.

    Arguments: ``precision``, ``consumer``, ``keep_ops``, ``keep_nodes``, ``calibration`` (``method`` and
    ``percentile``, or null), ``reduce_range``, ``repair`` (the YAML's, or null) and, where that is not null,
    ``judged``: what the gates of the variant are.
    """
    given, golden = task.arguments, samples.golden(task)
    exported, calibrated = task.upstream["export"].path, task.upstream.get("calibration")
    measured = samples.read(calibrated.directory / samples.FILE_NAME) if calibrated else None
    graphs, asked = PRECISIONS[given["precision"]].graphs, frozenset(given["keep_nodes"])
    return repair.reduce(
        exported,
        task.out_dir,
        make=lambda folder, repaired: graphs.make(
            exported, folder, given, keep_nodes=asked | repaired, measured=measured, progress=progress
        ),
        judge=lambda path: verdict(given["judged"], path, golden),
        samples=measured or golden,
        budget=repair.Budget(**given["repair"]) if given["repair"] else None,
        progress=progress,
        runnable=graphs.runnable,
    )


def verdict(judged: Mapping[str, Any], path: Path, golden: GoldenSamples) -> repair.Verdict:
    """The gates' word on one try of a repair, whose graph is at ``path``; ``judged`` is asked as ``judging.judge`` is.

    It is kept beside the graph, so that it need not be judged again.
    """
    runtime = judging.opened(path, signatures.from_json(judged["signature"]), judged["precision"], judged["consumer"])
    measured = parity.judge(runtime, golden, parity.Gates.of(judged))
    judging.keep(path.parent, judged, measured)
    figures = {"accuracy": measured.accuracy.value} if measured.accuracy else {}
    figures |= {"max_abs": measured.parity.max_abs, "cosine": measured.parity.cosine}
    return repair.Verdict(passed=not measured.reasons, figures=figures, reason="; ".join(measured.reasons))
