"""Is the source model right at all? Judged by its answers to labelled golden samples, before anything is made of it.

Parity proves that a variant answers what the source answers. A source whose labels stand in the wrong order, or that is
given images normalised otherwise than in its training, passes that as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.values import GoldenSamples, Sample, Signature

_BETTER = 0.01  # most probable that guessing does as well, where a source counts as better than guessing
_RIGHT = 0.4  # kappa from which a source counts as right: "moderate", Landis & Koch, Biometrics 33, 1977
_FAR = 0.1  # below the held-out accuracy: another data set may be harder, so less is no sign of a fault
_RISK = 0.001  # of refusing a source that is right, or not far below its held-out accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAccuracy:
    """What the labelled golden samples say of the source.

    Attributes:
        output: the scores that were judged.
        samples: how many have a label.
        value: share of them whose arg-max is the label.
        chance: share that guessing reaches, knowing how often each class is asked for and answered.
        reason: why the source is refused; empty when it is not.
    """

    output: str
    samples: int
    value: float
    chance: float
    reason: str


def judge(
    golden: GoldenSamples, signature: Signature, *, classes: int, trained: bool, held_out: tuple[float, int] | None
) -> SourceAccuracy | None:
    """Judge the source; refuse it only where chance cannot explain what is seen.

    Two rules, whose bounds know how few samples there are:

    - *No better than guessing.* Guessing is right for a share of ``sum(asked[c] * answered[c])`` over the classes
      (the agreement by chance in Cohen's kappa, Educational and Psychological Measurement 20, 1960; where only one
      class is asked for, one in the number of scores). Refused when guessing does as well with a probability over
      1 %, and a source of kappa 0.4 would do as badly with one under 0.1 % (exact binomial tails). So a source of that
      kappa or more is refused in less than one build of a thousand, however few the samples.
    - *Far below its own held-out accuracy.* The lower 99.9 % bound of the difference of the two shares is over 10
      points (Newcombe's hybrid score interval, method 10, Statistics in Medicine 17, 1998: made of two Wilson
      intervals, so of both sample sizes).

    Several outputs may be the scores: the best of them speaks for the source.

    Args:
        golden: samples with a target are used.
        signature: outputs with labels are scores, and where there are any, no others are.
        classes: how many the data names; 0 where it names none. Without labels an output has as many scores.
        trained: trained here, so that the first output of floats is the scores.
        held_out: accuracy (0 to 1) and how many samples it was measured on.

    Returns:
        None where nothing can be judged: no labels, no scores, or targets that are no indices of them.
    """
    labelled = [sample for sample in golden.samples if sample.target is not None]
    names = _scores(labelled, signature, golden.batched, classes, trained)
    judged = [_judged(name, labelled, held_out) for name in names]
    return max(judged, key=lambda one: one.value, default=None)


def unvarying(golden: GoldenSamples) -> Iterator[str]:
    """What is to be said of golden answers that are all alike: a variant that always answers so would pass as well."""
    count = len(golden.samples)
    if count < 2:
        return
    answers = {name: [sample.outputs[name] for sample in golden.samples] for name in golden.samples[0].outputs}
    if all(array.tobytes() == arrays[0].tobytes() for arrays in answers.values() for array in arrays):
        yield f"the source model gives one answer to all {count} golden samples, which prove little: see `inputs`"
        return
    for name, arrays in answers.items():
        scores = arrays[0].dtype.kind == "f" and arrays[0].ndim == (2 if golden.batched else 1) and arrays[0].size > 1
        if scores and len({int(array.argmax()) for array in arrays}) == 1:
            yield (
                f"output {name}: the greatest value is the same one, [{int(arrays[0].argmax())}], for all {count} "
                "golden samples, which proves little: are the weights trained, and the samples unlike?"
            )


def has_score_per_target(labelled: Sequence[Sample], name: str, *, batched: bool) -> bool:
    """Whether an output is ``[N, classes]`` (``[classes]`` without a batch dimension) with a score for every target."""
    arrays = [sample.outputs[name] for sample in labelled]
    return all(
        array.dtype.kind == "f" and array.ndim == (2 if batched else 1) and array.shape[-1] > max(1, sample.target or 0)
        for array, sample in zip(arrays, labelled, strict=True)
    )


def _scores(
    labelled: Sequence[Sample], signature: Signature, batched: bool, classes: int, trained: bool
) -> tuple[str, ...]:
    """The outputs that may be scores of the samples' classes."""
    if not labelled:
        return ()
    fitting = [spec for spec in signature.outputs if has_score_per_target(labelled, spec.name, batched=batched)]
    if any(spec.labels for spec in signature.outputs):
        return tuple(spec.name for spec in fitting if spec.labels)
    if trained:
        first = next((spec for spec in signature.outputs if spec.dtype.startswith("float")), None)
        return tuple(spec.name for spec in fitting if spec is first)
    wanted = classes or 1 + max(sample.target or 0 for sample in labelled)
    return tuple(spec.name for spec in fitting if labelled[0].outputs[spec.name].shape[-1] == wanted)


def _judged(name: str, labelled: Sequence[Sample], held_out: tuple[float, int] | None) -> SourceAccuracy:
    width = labelled[0].outputs[name].shape[-1]
    answered = np.array([int(sample.outputs[name].argmax()) for sample in labelled], np.int64)
    asked = np.array([sample.target for sample in labelled], np.int64)
    count, correct = len(labelled), int((answered == asked).sum())
    shares = (np.bincount(rows, minlength=width) / count for rows in (asked, answered))
    chance = float(np.prod(list(shares), axis=0).sum()) if len(set(asked.tolist())) > 1 else 1 / width
    reasons = []
    if _guesses(correct, count, chance):
        reasons.append(f"no better than guessing ({chance:.1%})")
    if held_out is not None and _far_below(correct, count, *held_out):
        reasons.append(f"far below the {held_out[0]:.2%} of its own {held_out[1]} held-out samples")
    told = f"right for {correct} of {count} labelled golden samples ({correct / count:.2%}): "
    return SourceAccuracy(
        output=name,
        samples=count,
        value=correct / count,
        chance=chance,
        reason=told + " and ".join(reasons) if reasons else "",
    )


def _guesses(correct: int, count: int, chance: float) -> bool:
    from scipy.stats import binom

    right = chance + _RIGHT * (1 - chance)
    return bool(binom.sf(correct - 1, count, chance) > _BETTER and binom.cdf(correct, count, right) < _RISK)


def _far_below(correct: int, count: int, held_out: float, held_out_count: int) -> bool:
    from scipy.stats import binomtest

    def interval(right: int, of: int) -> tuple[float, float]:
        found = binomtest(right, of).proportion_ci(1 - 2 * _RISK, method="wilson")
        return float(found.low), float(found.high)

    value, high = correct / count, interval(correct, count)[1]
    low = interval(round(held_out * held_out_count), held_out_count)[0]
    return held_out - value - math.hypot(held_out - low, high - value) > _FAR
