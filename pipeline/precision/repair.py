"""Precision repair: when the gates refuse a reduced-precision graph, keep its worst nodes in fp32 and try again."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base import files
from pipeline.base.step import Outcome
from pipeline.base.values import GoldenSamples, Progress
from pipeline.precision import blame

_SAMPLES = 8  # the cost of a node is a ratio of sums over all outputs: it settles after a few samples
_NAMED = 5  # nodes named in the note; properties name them all


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gates say of one graph.

    Attributes:
        figures: finite numbers by name. ``accuracy`` (share, 0 to 1, more is better), then ``max_abs`` (less is
            better) decide between two refused graphs; others are only reported.
        reason: why it is refused; empty when it passed.
    """

    passed: bool
    figures: Mapping[str, float]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How far repair may go.

    Attributes:
        attempts: rebuilds after the first build.
        max_share: largest share of the convertible nodes that may be kept in fp32, 0 to 1.
    """

    attempts: int
    max_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    folder: Path
    outcome: Outcome
    verdict: Verdict
    kept: Sequence[blame.Suspect]


def reduce(
    source: Path,
    out_dir: Path,
    *,
    make: Callable[[Path, frozenset[str]], Outcome],
    judge: Callable[[Path], Verdict],
    samples: GoldenSamples,
    budget: Budget | None,
    progress: Progress,
    runnable: blame.Runnable = lambda reduced, _: reduced,
) -> Outcome:
    """Make a reduced-precision graph and, where the gates refuse it, repair it within the budget, and give account.

    Attempt n keeps the 2^(n-1) worst nodes (1, 2, 4, …, the share's limit at most) of one ranking, made from the
    first graph. The best try is chosen: one that passed, else the highest accuracy, else the lowest max_abs, else the
    one that keeps least. Whether it is good enough is for the caller's own gate to say.

    Args:
        source: the fp32 graph.
        out_dir: existing directory; gets the chosen graph.
        make: writes ``model.onnx`` into a folder, with the named nodes of the fp32 graph kept in fp32.
        judge: runs the gates on a model file (or directory).
        samples: 8 of them are compared on, by their inputs alone: calibration samples for int8, golden ones for fp16
            and bf16, which have no others. They rank the nodes; how many are kept is up to the gates.
        budget: None makes one graph and asks no one.
        progress: told of each attempt.
        runnable: a graph for ONNX Runtime's CPU that rounds as the reduced one; see blame.Runnable.
    """
    if budget is None:
        return make(out_dir, frozenset())
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".repair-") as temporary:
        work = Path(temporary)

        def attempt(kept: Sequence[blame.Suspect]) -> _Try:
            folder = work / f"kept_{len(kept)}"
            folder.mkdir()
            outcome = make(folder, frozenset(suspect.name for suspect in kept))
            return _Try(folder=folder, outcome=outcome, verdict=judge(folder / outcome.file), kept=kept)

        best = attempt(())
        if not best.verdict.passed:
            progress("repair: comparing the fp32 and the reduced graph", None)
            (work / "board").mkdir()
            file = best.folder / best.outcome.file
            board = blame.Switchboard(source, file, _spaced(samples), work / "board", runnable=runnable)
            best = _best(best, board, attempt, budget, progress)
        for item in best.folder.iterdir():
            item.rename(out_dir / item.name)
    return best.outcome


def _best(
    first: _Try,
    board: blame.Switchboard,
    attempt: Callable[[Sequence[blame.Suspect]], _Try],
    budget: Budget,
    progress: Progress,
) -> _Try:
    """The best of the tries that the budget allows, with the account of them all in its outcome."""
    best, attempts = first, 0
    for kept in _schedule(board, budget):
        attempts += 1
        progress(f"repair: attempt {attempts} of {budget.attempts}, {_counted(len(kept), 'node')} in fp32", None)
        tried = attempt(kept)
        best, loser = (tried, best) if _merit(tried) > _merit(best) else (best, tried)
        files.remove_tree(loser.folder)  # a large model's tries need not all fit on the disk
        if best.verdict.passed:
            break
    return replace(best, outcome=_account(first, best, attempts, len(board.nodes)))


def _spaced(samples: GoldenSamples) -> GoldenSamples:
    """Some of the samples, evenly spaced: data sorted by class still gives several classes."""
    step = max(1, len(samples.samples) // _SAMPLES)
    return replace(samples, samples=samples.samples[::step][:_SAMPLES])


def _schedule(board: blame.Switchboard, budget: Budget) -> Iterator[tuple[blame.Suspect, ...]]:
    """The worst 1, 2, 4, … nodes; ends with the attempts, the allowed share, or when no node is left to blame."""
    limit = math.floor(budget.max_share * len(board.nodes) + 1e-9)  # 0.29 x 100 is 28.999999999999996
    ranking = board.worst_first()
    kept: tuple[blame.Suspect, ...] = ()
    for number in range(budget.attempts):
        more = tuple(itertools.islice(ranking, min(2**number, limit) - len(kept)))
        if not more:
            return
        kept += more
        yield kept


def _merit(tried: _Try) -> tuple[bool, float, float]:
    """Greater is better."""
    figures = tried.verdict.figures
    return tried.verdict.passed, figures.get("accuracy", 0.0), -figures.get("max_abs", 0.0)


def _account(first: _Try, best: _Try, attempts: int, convertible: int) -> Outcome:
    """The best try's outcome, with what repair did and what it bought, in a note and the value ``repair``."""
    repair = {
        "attempts": attempts,
        "passed": best.verdict.passed,
        "convertible": convertible,
        "kept": [{"node": item.name, "op": item.op, "sqnr_db": item.sqnr_db} for item in best.kept],
        "before": dict(first.verdict.figures),
        "after": dict(best.verdict.figures),
    }
    named = ", ".join(f"{item.name} {item.op}" for item in best.kept[:_NAMED])
    kept = f"kept {len(best.kept)} of {convertible} nodes in fp32"
    if best.kept:
        kept += f" ({named}{', …' if len(best.kept) > _NAMED else ''})"
    change = ", ".join(
        f"{name} {_shown(name, value)} -> {_shown(name, best.verdict.figures[name])}"
        for name, value in first.verdict.figures.items()
        if name in best.verdict.figures
    )
    outcome = "" if best.verdict.passed else f"not enough after {_counted(attempts, 'attempt')}; "
    note = f"repair: {outcome}{kept}" + (f": {change}" if change else "")
    made = best.outcome
    return replace(made, notes=(*made.notes, note), values={**made.values, "repair": repair})


def _shown(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.3g}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
