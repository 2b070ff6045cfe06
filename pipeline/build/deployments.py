"""What is made of variants for other ways of serving, emitted and proven; one file per kind.

Triton serves the ensemble, so prove.py proves it with the variants; the others are proven here.
"""

from __future__ import annotations

from pipeline.build import ensemble, libtorch, tfserving, torchserve
from pipeline.build.run import Run


def emit(run: Run) -> None:
    """Put everything that is made of variants into the candidates; a failure is kept to its row."""
    ensemble.emit(run)
    libtorch.emit(run)
    if archive := run.plan.torchserve:
        torchserve.emit(run, archive)
    if tree := run.plan.tfserving:
        tfserving.emit(run, tree)


def published(run: Run) -> None:
    """What is left to do when rows were published; a failure is kept to its row."""
    if tree := run.plan.tfserving:
        tfserving.published(run, tree)


def prove(run: Run) -> None:
    """Run what Triton does not serve, each in its own way, against the golden samples."""
    libtorch.prove(run)
    if archive := run.plan.torchserve:
        torchserve.prove(run, archive)
    if tree := run.plan.tfserving:
        tfserving.prove(run, tree)
