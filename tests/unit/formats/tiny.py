"""Tiny torch modules, one per difficulty, with their signatures and golden samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.base.values import Array, GoldenSamples, Sample, Signature, SourceModel, TensorSpec
from pipeline.capture.torch_module import NamedModule, TorchRuntime


def line_of(text: str) -> str:
    """``file:line`` of the one line of this file that holds ``text``."""
    numbers = [number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line]
    assert len(numbers) == 1
    return f"{__file__}:{numbers[0]}"


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def signature(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], batch: str | None = "N") -> Signature:
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs), batch=batch)


XY = signature([spec("x", "N", 4)], [spec("y", "N", 4)])


@dataclass(frozen=True)
class Case:
    """A module ready to export."""

    source: SourceModel
    named: NamedModule
    signature: Signature
    golden: GoldenSamples


def case(module: torch.nn.Module, model_signature: Signature, rows: Iterable[dict[str, Array]]) -> Case:
    """Ask the module about every row, as samples.make does."""
    named = NamedModule(module.eval(), model_signature).eval()
    runtime = TorchRuntime(named, model_signature)
    samples = tuple(Sample(inputs=row, outputs=runtime.run(row)) for row in rows)
    golden = GoldenSamples(samples=samples, batched=model_signature.batch is not None, sha256="")
    kind: Any = "torchscript" if isinstance(module, torch.jit.ScriptModule) else "torch"
    source = SourceModel(kind=kind, module=module, path=None, runtime=runtime)
    return Case(source, named, model_signature, golden)


def floats(*shape: int, count: int = 5, name: str = "x") -> list[dict[str, Array]]:
    generator = np.random.default_rng(7)
    return [{name: generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


class Mixed(torch.nn.Module):
    """Shared layers, a container and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 3)
        self.rest = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": self.first(x), "y": self.rest(self.first(x))}


class Text(torch.nn.Module):
    """Two int64 inputs of dynamic batch and length; float scores and int64 counts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.score = torch.nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = (self.embed(ids) * mask.unsqueeze(-1).float()).sum(1)
        count = mask.sum(1)
        return self.score(total / count.unsqueeze(-1).clamp(min=1).float()), count


TEXT = signature(
    [spec("ids", "N", "L", dtype="int64"), spec("mask", "N", "L", dtype="int64")],
    [spec("scores", "N", 3), spec("count", "N", dtype="int64")],
)


def text_rows(*lengths: int) -> list[dict[str, Array]]:
    generator = np.random.default_rng(3)
    return [
        {"ids": generator.integers(0, 50, (1, length)), "mask": np.ones((1, length), np.int64)} for length in lengths
    ]


class Recurrent(torch.nn.Module):
    """As many steps as the data needs."""

    def __init__(self) -> None:
        super().__init__()
        self.step = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = 0
        while bool(x.abs().max() > 0.1) and steps < 10:
            x = torch.tanh(self.step(x)) * 0.5
            steps += 1
        return x


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # of Branch
            return x + 1
        return x - 1


class LongOnesDiffer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 16:
            return x * 2
        return x + 1


class AtMost16(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 16:
            raise ValueError("too long")
        return x + self.table[: x.shape[1]]


class FrozenView(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(4, -1)


class PythonSize(torch.nn.Module):
    """Right in Python, frozen by a trace."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(int(x.shape[0]))


class Unscriptable(torch.nn.Module):
    """Neither a trace nor TorchScript's Python takes this."""

    def forward(self, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.sum() > 0:  # of Unscriptable
            return x + 1
        return x - 1


class Pair(NamedTuple):
    """Outputs by name."""

    b: torch.Tensor
    a: torch.Tensor


class Named(torch.nn.Module):
    """A named tuple, and Python control flow to force scripting."""

    def forward(self, x: torch.Tensor) -> Pair:
        if x.sum() > 0:
            return Pair(x + 1, x * 2)
        return Pair(x - 1, x * 3)


class Dictionary(torch.nn.Module):
    """A dict, and Python control flow to force scripting."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x * 2 if x.sum() > 0 else x * 3
        return {"b": y + 1, "a": y}


@dataclass
class Answer:
    """Outputs in a dataclass."""

    b: torch.Tensor
    a: torch.Tensor


class DataClass(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Answer:
        return Answer(b=x + 1, a=x * 2)


AB = signature([spec("x", "N", 4)], [spec("a", "N", 4), spec("b", "N", 4)])


class Unbatched(torch.nn.Module):
    """Two vectors of dynamic length, no batch."""

    def forward(self, signal: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return torch.outer(signal, kernel).sum(0)


UNBATCHED = signature([spec("signal", "T"), spec("kernel", 3)], [spec("y", 3)], batch=None)


def unbatched_rows() -> list[dict[str, Array]]:
    generator = np.random.default_rng(5)
    return [
        {"signal": generator.standard_normal(n).astype(np.float32), "kernel": np.float32([1, 2, 3])} for n in (5, 8, 5)
    ]
