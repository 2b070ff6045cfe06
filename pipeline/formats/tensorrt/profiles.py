"""Optimization profiles: from ranges of the YAML's dimension letters to shapes for every input.

What is asked of a profile beyond min <= opt <= max comes from Triton: a batch of any size up to max_batch_size may
reach it, so a profile starts at batch 1 and does not end before max_batch_size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.base.errors import ConfigError, StageError
from pipeline.base.values import Dim, GoldenSamples, Signature
from pipeline.formats.tensorrt.engine_session import OptimizationProfile, Profile, Shape, fitting, misfit
from pipeline.formats.tensorrt.spec import EngineSpec

Ranges = Mapping[str, Sequence[int]]
"""``[min, opt, max]`` by dimension letter."""

Problem = tuple[tuple[str | int, ...], str]


def resolve(signature: Signature, given: Sequence[Ranges], max_batch_size: int) -> tuple[Profile, ...]:
    """Shapes of every input for every profile.

    Args:
        signature: of the model; a letter in an input's shape is a dynamic dimension.
        given: one mapping per profile; none for a single profile of defaults. The batch letter may be left out, and
            then has the range 1 to ``max_batch_size`` and is made for ``max_batch_size``.
        max_batch_size: 0 for a model that is not batched by the server.

    Returns:
        At least one profile; for an input without dynamic dimensions its three shapes are equal.

    Raises:
        ConfigError: the ranges are not possible; see ``problems``.
    """
    if found := problems(signature, given, max_batch_size):
        text = "\n".join(f"{'.'.join(map(str, key)) or 'profiles'}: {message}" for key, message in found)
        raise ConfigError("optimization profiles are not possible", found=text)
    default = _default(signature, max_batch_size)
    return tuple(_profile(signature, {**default, **ranges}) for ranges in given or ({},))


def problems(signature: Signature, given: Sequence[Ranges], max_batch_size: int) -> list[Problem]:
    """What is wrong with the ranges, each with its key path inside ``profiles`` (empty where there are none)."""
    letters = list(dict.fromkeys(dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)))
    default = _default(signature, max_batch_size)
    if not given:
        missing = [letter for letter in letters if letter not in default]
        return [((), f"expected a profile with [min, opt, max] for {', '.join(missing)}")] if missing else []
    found: list[Problem] = []
    for index, ranges in enumerate(given):
        for letter, values in ranges.items():
            if letter not in letters:
                known = f"the dynamic dimensions are {', '.join(letters)}" if letters else "no dimension is dynamic"
                found.append(((index, letter), f"no input has a dimension {letter}; {known}"))
            else:
                batch_of = max_batch_size if letter == signature.batch else 0
                found += [((index, letter), message) for message in _wrong_range(letter, values, batch_of)]
        missing = [letter for letter in letters if letter not in ranges and letter not in default]
        found += [((index,), f"expected [min, opt, max] for {letter}") for letter in missing]
    return found


def check(golden: GoldenSamples, spec: EngineSpec, where: str) -> None:
    """Check that an engine takes every golden sample: it is asked with all of them, and warmed up with one.

    Args:
        golden: the samples, one row each; ``resolve`` has seen to larger batches.
        spec: of the engine.
        where: of the profiles in the YAML.

    Raises:
        StageError: no profile takes one of them.
    """
    spans = dict(enumerate(spec.profiles))
    for sample in golden.samples:
        fitting_profile(spec.flavour, spans, {name: array.shape for name, array in sample.inputs.items()}, where)


def fitting_profile(runtime: str, profiles: Mapping[int, Profile], shapes: Mapping[str, Shape], where: str = "") -> int:
    """The index of the profile to run a sample of these shapes with.

    Raises:
        StageError: no profile takes them; the message names ``runtime`` and, if known, the place in the YAML.
    """
    chosen = fitting(profiles, shapes)
    if chosen is None:
        wrong = [
            f"profile {index}, {name}: {reason}"
            for index, spans in profiles.items()
            for name, shape in shapes.items()
            if (reason := misfit(shape, spans[name]))
        ]
        what = f"{runtime}: no optimization profile takes a sample"
        hint = "widen `engine.profiles`, or name samples that fit them"
        raise StageError(what, found="\n".join(wrong), where=where, hint=hint)
    return chosen


def _default(signature: Signature, max_batch_size: int) -> dict[str, Sequence[int]]:
    if signature.batch is None or max_batch_size < 1:
        return {}
    return {signature.batch: (1, max_batch_size, max_batch_size)}


def _wrong_range(letter: str, values: Sequence[int], max_batch_size: int) -> Iterator[str]:
    """What is wrong with one range; ``max_batch_size`` is 0 where the letter is not the batch."""
    if len(values) != 3 or min(values) < 1:
        yield f"expected [min, opt, max], three sizes of at least 1; found {list(values)}"
        return
    low, best, high = values
    if not low <= best <= high:
        yield f"expected min <= opt <= max; found {list(values)}"
    if max_batch_size and low != 1:
        yield f"a lone request has batch 1: expected min 1 for the batch dimension {letter}; found {low}"
    if max_batch_size and high < max_batch_size:
        yield f"max_batch_size is {max_batch_size}: expected max {letter} of at least that; found {high}"


def _profile(signature: Signature, ranges: Ranges) -> Profile:
    def shape(dims: Sequence[Dim], which: int) -> Shape:
        return tuple(ranges[dim][which] if isinstance(dim, str) else dim for dim in dims)

    return {
        spec.name: OptimizationProfile(min=shape(spec.shape, 0), opt=shape(spec.shape, 1), max=shape(spec.shape, 2))
        for spec in signature.inputs
    }
