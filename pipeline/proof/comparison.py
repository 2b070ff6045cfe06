"""Are two sets of tensors the same answer? The one rule that parity and the served smoke test share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.base.values import Array, Tensors, Tolerance

_RELATIVE_FLOOR = 0.01  # of the tensor's greatest magnitude: keeps max_rel meaningful next to zeros
_NOISE = 1e-4  # a tolerance looser than this does not make values noise
_TINY = float(np.finfo(np.float64).tiny)
FP32 = Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.9999, min_top1=0.99)
"""What two computations of one graph in fp32 may differ by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Actual against expected tensors; all numbers are finite.

    Attributes:
        max_abs: greatest absolute difference, in the output's own unit.
        max_rel: greatest difference relative to the expected element (floored at 1 % of the tensor's greatest
            magnitude).
        cosine: least cosine similarity of any sample (index of dimension 0) of any output of floats.
        top1: share of rows whose arg-max over the classes agrees; None where no output is scores of classes.
        passed: whether the tolerance holds for every output.
        worst: where the greatest difference is: ``logits[3, 7]``.
        reason: why it did not pass, in one sentence; empty when it did.
    """

    max_abs: float
    max_rel: float
    cosine: float
    top1: float | None
    passed: bool
    worst: str
    reason: str


def compare(actual: Tensors, expected: Tensors, tolerance: Tolerance) -> Comparison:
    """Compare by name; dimension 0 is taken as the samples.

    Names, dtypes and shapes are compared first, then the places of NaN and infinity, then the values: integers
    and booleans must be equal, a float passes when ``|actual - expected|`` is at most ``tolerance.allowed``, and of
    scores of classes (``has_class_axis``) the arg-max is compared too. Never raises for unequal tensors.
    """
    if mismatch := _structure(actual, expected):
        return _refused(mismatch)
    rows = [_compare_one(name, actual[name], expected[name], tolerance) for name in expected]
    failed = [row.reason for row in rows if row.reason]
    shares = [row.top1 for row in rows if row.top1 is not None]
    worst = max(rows, key=lambda row: (bool(row.reason), row.max_abs))
    return Comparison(
        max_abs=max(row.max_abs for row in rows),
        max_rel=max(row.max_rel for row in rows),
        cosine=min(row.cosine for row in rows),
        top1=min(shares) if shares else None,
        passed=not failed,
        worst=worst.worst,
        reason="; ".join(failed),
    )


def has_class_axis(array: Array) -> bool:
    """Whether a tensor can be scores of classes: floats ``[samples, classes]``, more than one class.

    With more dimensions nothing says which one the classes are: a segmentation's last is its width.
    """
    return array.dtype.kind == "f" and array.ndim == 2 and array.shape[-1] > 1


def with_samples(tensors: Tensors, *, batched: bool) -> Tensors:
    """Dimension 0 is the samples, in a comparison; a model without a batch dimension has one sample."""
    return tensors if batched else {name: np.asarray(array)[None] for name, array in tensors.items()}


def _refused(reason: str, worst: str = "") -> Comparison:
    limit = float(np.finfo(np.float64).max)  # "as different as can be", and still a number JSON can hold
    return Comparison(max_abs=limit, max_rel=limit, cosine=-1.0, top1=None, passed=False, worst=worst, reason=reason)


def _structure(actual: Tensors, expected: Tensors) -> str:
    if set(actual) != set(expected):
        return f"outputs are {', '.join(sorted(actual)) or 'none'}, expected {', '.join(sorted(expected))}"
    for name, reference in expected.items():
        if actual[name].dtype != reference.dtype:
            return f"{name} is {actual[name].dtype}, expected {reference.dtype}"
        if actual[name].shape != reference.shape:
            return f"{name} has shape {list(actual[name].shape)}, expected {list(reference.shape)}"
    return ""


def _compare_one(name: str, actual: Array, expected: Array, tolerance: Tolerance) -> Comparison:
    if expected.size == 0:
        return _equal(name)
    if expected.dtype.kind != "f":
        return _compare_exact(name, actual, expected)
    got, reference = actual.astype(np.float64), expected.astype(np.float64)
    special = ~np.isfinite(reference) | ~np.isfinite(got)
    wrong = special & (got != reference) & ~(np.isnan(got) & np.isnan(reference))
    if wrong.any():
        place = _largest(wrong)
        where = _element(name, place)
        count = f"{int(wrong.sum())} of {wrong.size} elements"
        return _refused(f"{where} is {got[place]}, expected {reference[place]} ({count})", where)
    got, reference = np.where(special, 0.0, got), np.where(special, 0.0, reference)
    difference = np.abs(got - reference)
    scale = np.abs(reference)
    floor = max(_RELATIVE_FLOOR * float(scale.max()), _TINY)
    with np.errstate(over="ignore"):  # next to a reference of zeros only, any difference is out of all proportion
        relative = np.minimum(difference / np.maximum(scale, floor), np.finfo(np.float64).max)
    place = _largest(difference)
    allowed = tolerance.allowed(reference)
    within = difference <= allowed
    cosine = _least_cosine(got, reference, min(tolerance.max_abs, _NOISE))
    top1 = _agreement(actual, expected) if has_class_axis(expected) else None
    reasons = []
    if not within.all():
        excess = _largest(difference - allowed)
        scaled = f" + {tolerance.max_scaled:.1e}·{scale.max():.4g}" if tolerance.max_scaled else ""
        reasons.append(
            f"{_element(name, excess)} differs by {difference[excess]:.1e}, over {tolerance.max_abs:.1e} + "
            f"{tolerance.max_rel:.1e}·|{reference[excess]:.4g}|{scaled} "
            f"({int((~within).sum())} of {within.size} elements)"
        )
    if cosine < tolerance.min_cosine:
        reasons.append(f"{name}: cosine similarity {cosine:.6f}, under {tolerance.min_cosine}")
    if top1 is not None and top1 < tolerance.min_top1:
        reasons.append(f"{name}: arg-max agrees in {top1:.2%} of rows, under {tolerance.min_top1:.2%}")
    return Comparison(
        max_abs=float(difference[place]),
        max_rel=float(relative.max()),
        cosine=cosine,
        top1=top1,
        passed=not reasons,
        worst=_element(name, place),
        reason="; ".join(reasons),
    )


def _equal(name: str) -> Comparison:
    return Comparison(max_abs=0.0, max_rel=0.0, cosine=1.0, top1=None, passed=True, worst=name, reason="")


def _compare_exact(name: str, actual: Array, expected: Array) -> Comparison:
    wrong = actual != expected
    if not wrong.any():
        return _equal(name)
    if expected.dtype.kind not in "iub":
        return _refused(f"{name}: {int(wrong.sum())} of {wrong.size} elements differ", name)
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    place = _largest(difference)
    scale = np.maximum(np.abs(expected.astype(np.float64)), 1.0)
    return Comparison(
        max_abs=float(difference.max()),
        max_rel=float((difference / scale).max()),
        cosine=1.0,
        top1=None,
        passed=False,
        worst=_element(name, place),
        reason=f"{_element(name, place)} is {actual[place]}, expected {expected[place]} "
        f"({int(wrong.sum())} of {wrong.size} elements; {expected.dtype} must be equal)",
    )


def _least_cosine(actual: Array, expected: Array, noise: float) -> float:
    """Least cosine over the samples; one that is nothing but noise on both sides has no direction: 1."""
    samples = expected.shape[0] if expected.ndim else 1
    got, reference = actual.reshape(samples, -1), expected.reshape(samples, -1)
    scale = max(float(np.abs(reference).max()), float(np.abs(got).max()), _TINY)
    got, reference = got / scale, reference / scale  # squares must not overflow
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(reference, axis=1)
    floor = noise / scale
    quiet = np.maximum(np.abs(got), np.abs(reference)).max(axis=1) <= floor
    quiet |= (got == reference).all(axis=1)
    products = (got * reference).sum(axis=1)
    cosines = np.where(quiet, 1.0, products / np.where(norms > 0, norms, 1.0))
    return float(np.clip(cosines.min(), -1.0, 1.0))


def _agreement(actual: Array, expected: Array) -> float:
    """Share of rows where the actual arg-max is one of the expected maxima (a tie has several)."""
    rows = np.where(np.isnan(expected), -np.inf, expected)
    chosen = np.argmax(np.where(np.isnan(actual), -np.inf, actual), axis=1)
    return float(np.mean(rows[np.arange(len(rows)), chosen] == rows.max(axis=1)))


def _largest(values: Array) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(int(np.argmax(values)), values.shape))


def _element(name: str, place: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, place))}]" if place else name
