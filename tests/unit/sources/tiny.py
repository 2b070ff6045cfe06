"""Small user models and data for the source's tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.base import signatures
from pipeline.base.step import Made, Outcome, Step, Task, call
from pipeline.base.values import Progress, Signature, SourceModel, TensorSpec
from pipeline.data.user_code import Resolve
from pipeline.formats import opening
from pipeline.schema.model import Source
from pipeline.sources import table

CODE = '''
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=8, tied=False):
        super().__init__()
        self.first, self.second = nn.Linear(4, hidden), nn.Linear(hidden, 3)
        self.norm, self.dropout = nn.BatchNorm1d(hidden), nn.Dropout(0.2)
        self.twin = self.second if tied else None

    def forward(self, x):
        return self.second(self.dropout(torch.relu(self.norm(self.first(x)))))

class Single(nn.Module):
    """No batch dimension: [T, 4] in, [3] and a count out."""
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return {"count": torch.tensor([len(x)]), "scores": self.linear(x).mean(0)}

def data(train=True, far=4.0):
    random = np.random.default_rng(1)
    def part(count):
        targets = np.arange(count) % 3
        x = random.normal(size=(count, 4)).astype(np.float32)
        x[np.arange(count), targets] += far
        return {"x": x}, targets
    parts = {"test": part(30), "labels": ["a", "b", "c"]}
    return {**parts, "train": part(65)} if train else parts

def sequences():
    found = data()
    def part(rows, targets):
        return [{"x": np.repeat(row[None], 1 + n % 3, 0)} for n, row in enumerate(rows["x"])], targets
    return {name: part(*found[name]) for name in ("train", "test")}

def broken(x=None):
    raise RuntimeError("the user's mistake")
'''

BATCHED = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 3)),),
    batch="N",
)
UNBATCHED = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("T", 4)),),
    outputs=(
        TensorSpec(name="count", dtype="int64", shape=(1,)),
        TensorSpec(name="scores", dtype="float32", shape=(3,)),
    ),
    batch=None,
)


def task(folder: Path, settings: dict[str, Any], signature: Signature, out: str = "out") -> Task:
    """The source's step on a folder with the user's code, into ``out`` in it; also a later step upon that one."""
    source = Source.model_validate(settings)
    step = Step(
        name="source[m]",
        function=f"{table.of(source).module}:make",
        arguments={"source": source.model_dump(mode="json", by_alias=True), "signature": signatures.to_json(signature)},
        unkeyed={"folder": str(folder)},
    )
    out_dir = folder / out
    made = Made(directory=out_dir, outcome=Outcome(), digest="", cached=False)
    return Task(
        step=step, upstream={"source": made}, out_dir=out_dir, partial_dir=folder / "partial", log_path=folder / "log"
    )


def values(task: Task, progress: Progress) -> dict[str, Any]:
    """Run the source's step; its values and notes."""
    task.out_dir.mkdir(exist_ok=True)
    made = call(task, progress)
    return {**made.values, "notes": list(made.notes)}


class Workshop:
    """A folder with the user's code, and the source's two calls on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[str] = []
        (folder / "user.py").write_text(CODE)

    def resolve(self, name: str) -> Path:
        return self.folder / name

    def prepare(
        self, settings: dict[str, Any], signature: Signature = BATCHED, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Run the cached step into out/; its values."""
        return values(task(self.folder, settings, signature), progress or (lambda text, share: self.told.append(text)))

    def open(self, settings: dict[str, Any], signature: Signature = BATCHED) -> SourceModel:
        """Open what prepare left."""
        made = task(self.folder, settings, signature)
        return opening.opened(replace(made, step=replace(made.step, upstream={"source": made.step})), signature)


def digests(source: Source, resolve: Resolve) -> dict[str, str]:
    return table.of(source).digests(source, resolve)


def tools(source: Source) -> tuple[str, ...]:
    return table.of(source).tools(source)
