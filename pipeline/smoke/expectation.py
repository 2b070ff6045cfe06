"""What a server should serve. Apart from the checks, so that naming it loads no client library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import GoldenSamples, Signature, Tolerance

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a server should serve of one model.

    Attributes:
        model: its Triton name.
        max_batch_size: as in the configuration; 0 for a model that Triton does not batch.
        versions: every version that should be served, and no other; None for one whose samples are not at hand, which
            is then only asked for an answer.
        tolerance: how close an answer must be to the reference.
        config: the ModelConfig message written to the repository.
        alive: raises a PipelineError when the server's process has ended; does nothing for a server of someone else's.
    """

    model: str
    signature: Signature
    max_batch_size: int
    versions: Mapping[int, GoldenSamples | None]
    tolerance: Tolerance
    config: Any
    alive: Callable[[], None]
