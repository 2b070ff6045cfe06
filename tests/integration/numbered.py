"""Three python models and the ensemble over them, of which every answer tells the builds it came from.

Run as ``python -m tests.integration.numbered FOLDER BUILD`` it publishes a build, and says when it begins to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base import model_config
from pipeline.repository import candidate as candidates
from pipeline.repository import pins
from pipeline.repository import publish as publishing
from pipeline.repository.versions import CONFIG, Version
from tests.unit.repository.bench import Bench

MEMBERS = ("before", "middle", "after")
ENSEMBLE = "whole"
_MODEL = """
import numpy
import triton_python_backend_utils as triton


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(triton.get_input_tensor_by_name(one, "x").as_numpy()) for one in requests]

    def _answer(self, x):
        told = numpy.concatenate([x, numpy.full((len(x), 1), {build}, numpy.float32)], axis=1)
        return triton.InferenceResponse([triton.Tensor("y", told)])
"""


def _tensor(name: str, size: int) -> dict[str, object]:
    return {"name": name, "data_type": "TYPE_FP32", "dims": [size]}


def _files(fields: dict[str, object]) -> dict[str, bytes]:
    fields = {"max_batch_size": 4, "version_policy": {"latest": {"num_versions": 1}}, **fields}
    return {CONFIG: model_config.to_text(model_config.build(fields)).encode()}


def members(folder: Path, build: int) -> list[Version]:
    """Each adds the number of its build to what it is given."""
    made = []
    for place, name in enumerate(MEMBERS, 1):
        plain = Bench(folder).version(name=name)
        artifact = folder / f"{name}.py"
        artifact.write_text(_MODEL.format(build=build))
        fields = {
            "name": name,
            "backend": "python",
            "input": [_tensor("x", place)],
            "output": [_tensor("y", place + 1)],
        }
        made.append(replace(plain, file_name="model.py", artifact=artifact, model_files=_files(fields)))
    return made


def ensemble(folder: Path, asked: dict[str, int]) -> Version:
    """The three in a row, in these versions."""
    wires = ["x", "one", "two", "y"]
    steps = [
        {"model_name": name, "model_version": asked[name], "input_map": {"x": wires[place]},
         "output_map": {"y": wires[place + 1]}}
        for place, name in enumerate(MEMBERS)
    ]  # fmt: skip
    fields = {"name": ENSEMBLE, "platform": "ensemble", "input": [_tensor("x", 1)], "output": [_tensor("y", 4)],
              "ensemble_scheduling": {"step": steps}}  # fmt: skip
    return replace(Bench(folder).ensemble(asked, name=ENSEMBLE), model_files=_files(fields))


def publish(folder: Path, build: int, *, names: Sequence[str] = (*MEMBERS, ENSEMBLE)) -> None:
    """A whole build: emitted, taken as proven, published."""
    made = members(folder, build)
    with candidates.opened(folder / "repo", names, run_id=f"build{build}") as candidate:
        for version in made:
            candidate.add(version, retain=4)
        reached = {name: pins.reached_version(candidate.path / name) or 0 for name in MEMBERS}
        candidate.add(ensemble(folder, reached), retain=4)
        print("publishing", flush=True)
        for name in names:
            publishing.put(candidate, name, proof="served")
        for name in names:
            publishing.narrow(candidate, name)


if __name__ == "__main__":
    publish(Path(sys.argv[1]), int(sys.argv[2]))
