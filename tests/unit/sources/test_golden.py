"""What the report is told with the golden samples: how names were matched, and what the answers are worth."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import signatures
from pipeline.base.step import Made, Step, Task, call
from pipeline.base.values import Signature, TensorSpec
from pipeline.schema.model import Source
from pipeline.sources import golden, table

CODE = '''
import numpy as np
import torch

class Sum(torch.nn.Module):
    """The greatest score is always the second one."""
    def forward(self, left, right):
        total = left + right
        return torch.stack([total * 0, total.abs() + 1], 1)

def data():
    values = np.arange(16, dtype=np.float32)
    return {"test": ({"a": values, "b": values}, None)}
'''


def test_positions_and_answers_that_do_not_vary_are_told(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(CODE)
    out = tmp_path / "out"
    out.mkdir()
    signature = Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=("N",)) for name in "ab"),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)),),
        batch="N",
    )
    source = Source.model_validate({"model": {"callable": "user.py:Sum"}})
    arguments = {"source": source.model_dump(mode="json", by_alias=True), "signature": signatures.to_json(signature)}
    made_by = Step(name="source[m]", function=f"{table.of(source).module}:make", arguments=arguments)
    step = Step(
        name="samples[m]",
        function="pipeline.sources.golden:make",
        arguments={
            **arguments, "samples": {"from": {"callable": "user.py:data"}, "count": 8}, "train_data": None, "seed": 0,
            "source_labels": [], "label_places": {},
        },
        unkeyed={"folder": str(tmp_path)},
        upstream={"source": made_by},
    )  # fmt: skip
    first = Task(step=Step(name="source[m]", function=made_by.function, arguments=arguments, unkeyed=step.unkeyed),
                 upstream={}, out_dir=out, partial_dir=tmp_path / "p", log_path=tmp_path / "l")  # fmt: skip
    made = Made(directory=out, outcome=call(first, lambda *_: None), digest="", cached=False)
    task = Task(step=step, upstream={"source": made}, out_dir=out, partial_dir=tmp_path / "p", log_path=tmp_path / "l")
    notes = golden.make(task, lambda *_: None).notes
    assert "`inputs` go by position: a, b for the model's left, right" in notes
    assert any(note.startswith("output y: the greatest value is the same one, [1], for all 8") for note in notes)
