"""A small text classifier with two inputs: is a line of the Python manual prose or code?

The data is real and is part of Python: ``pydoc_data.topics``, the language reference as ``help()`` shows it, where
indented blocks are code and grammar, and the rest is prose.
"""

import re
import zlib
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import nn

VOCABULARY = 2048  # 0 pads; words hash to 1..2047
LENGTHS = (8, 16, 24)
LABELS = ("prose", "code")
_NO_CODE = re.compile(r"\s*([*+|-]|\d+\.) ")  # items of lists, and tables
_PROSE_HEAD = re.compile(r"\s*(Note|See also|Changed in|New in|Deprecated|CPython|Warning)")
_TOKEN = re.compile(r"\w+|[^\w\s]")


class TextClassifier(nn.Module):
    """Embedding, two convolutions over neighbours, masked mean, linear.

    Takes ids and mask, both int64 [N, L]; gives {"logits": float32 [N, 2]}.
    """

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.near = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.far = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(hidden, len(LABELS))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores of the two classes; positions whose mask is 0 have no influence."""
        weights = mask.unsqueeze(-1).to(torch.float32)
        words = self.dropout(self.embedding(ids)) * weights
        context = torch.relu(self.near(words.transpose(1, 2))).transpose(1, 2) * weights
        context = torch.relu(self.far(context.transpose(1, 2))).transpose(1, 2) * weights
        pooled = (words + context).sum(1) / weights.sum(1).clamp(min=1.0)
        return {"logits": self.out(pooled)}


def tokens(text: str) -> list[int]:
    """Words and signs as stable hashes; no vocabulary file is needed."""
    return [1 + zlib.crc32(word.lower().encode()) % (VOCABULARY - 1) for word in _TOKEN.findall(text)]


def data(seed: int = 0, test_fraction: float = 0.2) -> dict[str, Any]:
    """Sentences of prose and lines of code, padded to the shortest of three lengths; each topic is in one part only."""
    random = np.random.default_rng(seed)
    names = sorted(topics)
    held_out = set(random.choice(names, size=round(len(names) * test_fraction), replace=False).tolist())
    parts: dict[str, tuple[list[dict[str, np.ndarray]], list[int]]] = {"train": ([], []), "test": ([], [])}
    seen: set[str] = set()
    for name in names:
        rows, targets = parts["test" if name in held_out else "train"]
        for text, target in _pieces(topics[name]):
            if text not in seen:
                seen.add(text)
                rows.append(_sample(tokens(text)))
                targets.append(target)
    return {**{name: (rows, np.asarray(targets)) for name, (rows, targets) in parts.items()}, "labels": LABELS}


def _pieces(topic: str) -> list[tuple[str, int]]:
    """Lines of code (1), which are blocks indented below a paragraph that ends in a colon, and other sentences (0)."""
    found: list[tuple[str, int]] = []
    before, code_indent = "", None
    for block in re.split(r"\n\s*\n", topic):
        lines = [line for line in block.split("\n") if line.strip()]
        indent = min((_indent(line) for line in lines), default=0)
        introduced = before.endswith(":") and indent > _indent(before) and not _PROSE_HEAD.match(before)
        if code_indent is None and introduced and not _NO_CODE.match(block):
            code_indent = indent
        elif code_indent is not None and indent < code_indent:
            code_indent = None
        if code_indent is not None:
            found += [(line.strip(), 1) for line in lines]
            continue
        before = lines[-1] if lines else ""
        if before.endswith((".", ":")):
            text = " ".join(line.strip() for line in lines)
            found += [(sentence, 0) for sentence in re.split(r"(?<=[.:;]) ", text)]
    return [(text, target) for text, target in found if 3 <= len(_TOKEN.findall(text)) <= LENGTHS[-1]]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _sample(ids: list[int]) -> dict[str, np.ndarray]:
    length = next(size for size in LENGTHS if len(ids) <= size)
    row = np.zeros(length, np.int64)
    row[: len(ids)] = ids
    return {"ids": row, "mask": (np.arange(length) < len(ids)).astype(np.int64)}
