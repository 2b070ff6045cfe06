"""The same seed, the same bytes: random state and torch's settings, set for a while and then put back."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch

INITIAL_SEED = 0
"""Of the initial weights of a model that is not trained."""

_MOST_NOTES = 5


def seed_all(seed: int, epoch: int = 0) -> None:
    """Seed torch, NumPy and Python for one epoch, so that a resumed training draws what an uninterrupted one draws."""
    combined = (seed * 1_000_003 + epoch) % 2**32
    torch.manual_seed(combined)
    np.random.seed(combined)  # user models may draw from the global state
    random.seed(combined)


@contextlib.contextmanager
def reproducible(seed: int, notes: list[str]) -> Iterator[None]:
    """Run seeded, with deterministic algorithms and no more threads than CPUs this process may use.

    Warnings raised inside, such as an operator without a deterministic form, become notes, each once, one line each.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, min(threads, len(os.sched_getaffinity(0)))))
        torch.use_deterministic_algorithms(True, warn_only=True)
        seed_all(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", quiet)  # as Python does by default: they are for a library's developers
            yield
        notes += _notes(caught)
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _notes(caught: list[warnings.WarningMessage]) -> list[str]:
    lines = [f"warning: {item.category.__name__}: {str(item.message).strip().splitlines()[0][:200]}" for item in caught]
    unique = list(dict.fromkeys(lines))
    more = [f"and {len(unique) - _MOST_NOTES} more warnings"] if len(unique) > _MOST_NOTES else []
    return unique[:_MOST_NOTES] + more
