"""Configurations of the three models that make images into labels: preprocessing, postprocessing, and the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base import model_config
from pipeline.servers.triton.config_pbtxt import ModelFiles

IMAGE, LABELS = "image", "labels"
"""The ensemble's input, the bytes of image files, and its output, JSON text; both of dims [1]."""


def models(
    name: str, *, steps: Sequence[str], versions: Mapping[str, int], variant: Any, scores: str
) -> dict[str, ModelFiles]:
    """The model that makes image files into the variant's input, the one that makes its scores into labels, and both.

    Args:
        name: the ensemble's.
        steps: names of the preprocessing model, the variant and the postprocessing model.
        versions: of each of these, the one that is asked; one that is not named is asked for its newest.
        variant: ModelConfig message of the variant; of one input.
        scores: the variant's output that postprocessing takes.
    """
    before, model, after = steps
    tensor = variant.input[0].name
    (output,) = (item for item in variant.output if item.name == scores)
    inside = {"tensor": f"{before}.{tensor}", "scores": f"{model}.{scores}"}  # of the ensemble, not of its steps
    fields = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": variant.max_batch_size,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [_text(IMAGE)],
        "output": [_text(LABELS)],
        "ensemble_scheduling": {
            "step": [
                _step(before, versions, {IMAGE: IMAGE}, {tensor: inside["tensor"]}),
                _step(model, versions, {tensor: inside["tensor"]}, {scores: inside["scores"]}),
                _step(after, versions, {scores: inside["scores"]}, {LABELS: LABELS}),
            ]
        },
    }
    return {
        before: _python(before, [_text(IMAGE)], [_as_served(variant.input[0])], variant.max_batch_size),
        after: _python(after, [_as_served(output)], [_text(LABELS)], variant.max_batch_size),
        name: ModelFiles(config=model_config.build(fields), extra={}),
    }


def _python(name: str, inputs: list[Any], outputs: list[Any], max_batch_size: int) -> ModelFiles:
    fields = {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch_size,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {},
    }
    return ModelFiles(config=model_config.build(fields), extra={})


def _text(name: str) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_STRING", "dims": [1]}


def _as_served(tensor: Any) -> dict[str, Any]:
    """Name, type and dims of a variant's tensor as clients see it: a reshape is the variant's own."""
    data_type = model_config.to_dict(tensor)["data_type"]
    return {"name": tensor.name, "data_type": data_type, "dims": list(tensor.dims)}


def _step(
    name: str, versions: Mapping[str, int], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> dict[str, Any]:
    asked = versions.get(name, -1)
    return {"model_name": name, "model_version": asked, "input_map": dict(inputs), "output_map": dict(outputs)}
