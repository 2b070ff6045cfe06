"""Which variant to take for latency, for throughput and for memory, and why. Pure: records in, records out.

A candidate has passed everything it was put to. Of those within 5 % of the best, which one short measurement cannot
tell apart, the more accurate is taken, then the smaller file. Deployments are no candidates: an ensemble does more
than the variant it is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.schema import Pick, VariantReport
from pipeline.report.units import human_bytes, human_ms, human_rate

CAVEAT = "Speeds are of short runs on this machine, beside the build: good for comparing these rows, not for promises"
"""What the figures are worth."""
_NEAR = 1.05
"""Ratio up to which two figures count as equal."""


@dataclass(frozen=True, slots=True)
class _Purpose:
    """One way to choose.

    Attributes:
        cost: smaller is better; None where the variant has no such figure.
        show: the figure, for a person.
        better: what a smaller cost is called: ``faster than``.
    """

    name: Literal["latency", "throughput", "memory"]
    cost: Callable[[VariantReport], float | None]
    show: Callable[[VariantReport], str]
    better: str


def choose(variants: Sequence[VariantReport]) -> list[Pick]:
    """One pick for each purpose, in the order latency, throughput, memory."""
    passed = _passed(variants)
    resident = any(_resident(row) is not None for row in passed)
    memory = _Purpose("memory", _resident if resident else lambda row: row.size_bytes, _shown_memory, "smaller than")
    return [_pick(purpose, passed) for purpose in (_LATENCY, _THROUGHPUT, memory)]


def left_out(variants: Sequence[VariantReport]) -> dict[str, list[str]]:
    """Variants that passed and have no speed, by the reason for that."""
    reasons: dict[str, list[str]] = {}
    for row in _passed(variants):
        if row.unmeasured_reason:
            reasons.setdefault(row.unmeasured_reason, []).append(row.name)
    return reasons


def is_deployment(row: VariantReport) -> bool:
    """Whether a row is made of variants: only a variant is called ``<model>_<key>``."""
    return not row.name.startswith(f"{row.model}_")


def _passed(variants: Sequence[VariantReport]) -> list[VariantReport]:
    """The candidates."""
    made = (row for row in variants if not (is_deployment(row) or row.error or row.skipped_reason))
    return [row for row in made if row.size_bytes is not None and row.smoke.outcome != "failed"]


def _pick(purpose: _Purpose, passed: Sequence[VariantReport]) -> Pick:
    costs = {row.name: cost for row in passed if (cost := purpose.cost(row)) is not None}
    candidates = [row for row in passed if row.name in costs]
    if not candidates:
        return Pick(purpose=purpose.name, name=None, reason=f"nothing to choose: {_why_none(passed)}")
    best = min(candidates, key=lambda row: costs[row.name])
    near = [row for row in candidates if costs[row.name] <= costs[best.name] * _NEAR]
    chosen = min(near, key=lambda row: (-_accuracy(row), row.size_bytes, costs[row.name]))
    words = [purpose.show(chosen), *_compared(purpose, chosen, near, candidates, costs)]
    if chosen.accuracy:
        words.append(f"accuracy {chosen.accuracy.value:.2%}")
    return Pick(purpose=purpose.name, name=chosen.name, reason=", ".join(words))


def _why_none(passed: Sequence[VariantReport]) -> str:
    if not passed:
        return "no variant passed"
    reasons = "; ".join(dict.fromkeys(row.unmeasured_reason for row in passed if row.unmeasured_reason))
    return f"no variant was measured ({reasons})" if reasons else "no variant was measured"


def _compared(
    purpose: _Purpose,
    chosen: VariantReport,
    near: Sequence[VariantReport],
    candidates: Sequence[VariantReport],
    costs: dict[str, float],
) -> list[str]:
    """What speaks for it: against its equals, and against the first of the others in the YAML's order."""
    words = []
    if equals := [row for row in near if row is not chosen]:
        names = ", ".join(row.name for row in equals)
        words.append(f"within 5 % of {names} and {_told_apart(chosen, equals)}")
    if beaten := [row for row in candidates if row not in near]:
        ratio = costs[beaten[0].name] / costs[chosen.name]
        decimals = 0 if ratio >= 10 else 1 if ratio >= 1.1 else 2
        words.append(f"{ratio:.{decimals}f}x {purpose.better} {beaten[0].name}")
    return words or ["the only one to choose from"]


def _told_apart(chosen: VariantReport, equals: Sequence[VariantReport]) -> str:
    if any(_accuracy(row) < _accuracy(chosen) for row in equals):
        return "more accurate"
    sizes = [row.size_bytes for row in equals if row.size_bytes is not None]
    return "the smallest file" if chosen.size_bytes is not None and min(sizes) > chosen.size_bytes else "as good as any"


def _accuracy(row: VariantReport) -> float:
    return row.accuracy.value if row.accuracy else 0.0


def _resident(row: VariantReport) -> int | None:
    return row.measurement.memory_bytes if row.measurement else None


def _shown_memory(row: VariantReport) -> str:
    on_disk, resident = f"{human_bytes(row.size_bytes or 0)} on disk", _resident(row)
    return on_disk if resident is None else f"{human_bytes(resident)} resident, {on_disk}"


_LATENCY = _Purpose(
    "latency",
    lambda row: row.measurement.p50_ms if row.measurement else None,
    lambda row: human_ms(row.measurement.p50_ms if row.measurement else 0),
    "faster than",
)
_THROUGHPUT = _Purpose(
    "throughput",
    lambda row: 1 / row.measurement.throughput_per_s if row.measurement else None,
    lambda row: human_rate(row.measurement.throughput_per_s if row.measurement else 0),
    "as much as",
)
