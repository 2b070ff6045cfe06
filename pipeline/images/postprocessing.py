"""From a model's scores to labels with probabilities.

One file with numpy as its only need, because it is copied as it is into what is served (Triton's postprocessing model,
TorchServe's handler), on Python 3.10 and later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class UnusableScores(ValueError):  # noqa: N818 - what they are, in the words of whoever asked for labels
    """Scores that give no probabilities: NaN or infinity is among them, or they overflow."""


@dataclass(frozen=True)
class Postprocessing:
    """How one row of scores becomes an answer.

    Attributes:
        activation: ``softmax``, ``exp`` for log-probabilities, or ``none`` for probabilities.
        labels: class names by index; empty where they have none, and the index is the label.
        top_k: most labels per row.
        threshold: labels less probable than this are left out, 0 to 1.
    """

    activation: str
    labels: tuple[str, ...]
    top_k: int
    threshold: float

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Postprocessing:
        """The inverse of ``to_json``.

        Raises:
            ValueError: not JSON of these fields.
        """
        try:
            given = json.loads(text)
            return cls(**{**given, "labels": tuple(given["labels"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"no postprocessing settings: {error}") from error


def probabilities(scores: Array, activation: str) -> Array:
    """Scores ``[..., classes]`` as float64 probabilities; softmax is shifted by the greatest, so as not to overflow."""
    values = scores.astype(np.float64)
    if activation == "none":
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # the result shows it
        if activation == "exp":
            return np.asarray(np.exp(values))
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def ranked(scores: Array, how: Postprocessing) -> list[dict[str, Any]]:
    """One row of scores ``[classes]`` as ``[{"label", "probability"}]``, best first; equals in the order of classes.

    Raises:
        UnusableScores: a probability is NaN or infinite. A score of -inf is none of these: its class is impossible.
    """
    row = probabilities(scores, how.activation)
    if (np.isnan(row) | (row == np.inf)).any():
        raise UnusableScores("the model's scores give no probabilities: NaN or infinity is among them")
    best: Sequence[int] = np.argsort(-row, kind="stable")[: how.top_k].tolist()
    return [
        {"label": how.labels[index] if how.labels else str(index), "probability": round(float(row[index]), 6)}
        for index in best
        if row[index] >= how.threshold
    ]


def answer(scores: Array, how: Postprocessing) -> str:
    """The same as JSON text.

    Raises:
        UnusableScores: see ranked.
    """
    return json.dumps(ranked(scores, how), ensure_ascii=False)
