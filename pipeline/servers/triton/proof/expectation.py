"""What a server should serve. Apart from the checks, so that naming it loads no client library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.base.values import GoldenSamples, Signature, Tolerance

if TYPE_CHECKING:
    from pipeline.images.postprocessing import Postprocessing
    from pipeline.images.preprocessing import Preprocessing


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesExpectation:
    """What a server should serve of an ensemble.

    Attributes:
        model: its Triton name.
        members: the models it asks, preprocessing first.
        versions: those of the ensemble that should be served.
        config: the ModelConfig message written to the repository.
        golden: image files with the source model's answers.
        scores: the output that labels are made of.
        before: how images become the input.
        after: how scores become labels.
        tolerance: how close the variant's scores must be to the reference.
        alive: raises a PipelineError when the server's process has ended.
    """

    model: str
    members: tuple[str, ...]
    versions: Sequence[int]
    config: Any
    golden: GoldenSamples
    scores: str
    before: Preprocessing
    after: Postprocessing
    tolerance: Tolerance
    alive: Callable[[], None]
