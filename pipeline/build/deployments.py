"""What is made of variants for other ways of serving, emitted and proven; one file per kind.

Triton serves the ensemble, so prove.py proves it with the variants; the others are proven here.
"""

from __future__ import annotations

from pipeline.build import ensemble, libtorch, tfserving, torchserve
from pipeline.build.run import Run


def emit(run: Run) -> None:
    """Put everything that is made of the emitted variants where it belongs; a failure is kept to its row."""
    ensemble.emit(run)
    libtorch.emit(run)
    if archive := run.plan.torchserve:
        torchserve.emit(run, archive)
    if tree := run.plan.tfserving:
        tfserving.emit(run, tree)


def adopt(run: Run) -> None:
    """Take the newest versions of what Triton does not serve as what shall be proven."""
    libtorch.adopt(run)
    if archive := run.plan.torchserve:
        torchserve.adopt(run, archive)
    if tree := run.plan.tfserving:
        tfserving.adopt(run, tree)


def prove(run: Run) -> None:
    """Run what Triton does not serve, each in its own way, against the golden samples."""
    libtorch.prove(run)
    if archive := run.plan.torchserve:
        torchserve.prove(run, archive)
    if tree := run.plan.tfserving:
        tfserving.prove(run, tree)
