"""A recurrent network without a batch dimension, with a loop that depends on its data.

It reads the rows of an 8x8 digit one after the other, then lets its hidden state settle until it no longer moves.
"""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

SHORTEST, ROWS = 5, 8


class Recurrent(nn.Module):
    """A gated cell written by hand, a loop over rows, then a loop until the state settles.

    Takes float32 [T, 8]; gives logits float32 [10] and the number of settling steps, int64 [1].
    """

    def __init__(self, hidden: int = 64, tolerance: float = 0.1, most_steps: int = 20) -> None:
        super().__init__()
        self.hidden, self.tolerance, self.most_steps = hidden, tolerance, most_steps
        self.read = nn.Linear(8, 2 * hidden)
        self.recall = nn.Linear(hidden, 2 * hidden, bias=False)
        self.settle = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 10)
        self.correct = nn.Linear(hidden, 10)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the ten digits, and how many steps the state took to settle."""
        read = self.read(rows)
        state = torch.zeros(self.hidden)
        for step in range(rows.size(0)):
            both = read[step] + self.recall(state)
            gate = torch.sigmoid(both[: self.hidden])
            state = gate * state + (1.0 - gate) * torch.tanh(both[self.hidden :])
        read_out = self.out(state)
        moved = torch.ones(1)
        steps = torch.zeros(1, dtype=torch.int64)
        while bool((moved > self.tolerance) & (steps < self.most_steps)):
            settled = 0.5 * state + 0.5 * torch.tanh(self.settle(state))
            moved = (settled - state).abs().max().reshape(1)
            state = settled
            steps = steps + 1
        return read_out + self.correct(state), steps


def data(seed: int = 0, test_fraction: float = 0.2) -> dict[str, Any]:
    """scikit-learn's digits as sequences of 5 to 8 rows: the last rows are left out by the sample's number."""
    bunch = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    cut = round(len(order) * test_fraction)
    parts = {}
    for name, chosen in (("test", order[:cut]), ("train", order[cut:])):
        rows = [bunch.images[row][: SHORTEST + row % (ROWS - SHORTEST + 1)] / 16.0 for row in chosen]
        parts[name] = ([{"rows": image.astype(np.float32)} for image in rows], bunch.target[chosen])
    return {**parts, "labels": [str(digit) for digit in range(10)]}
