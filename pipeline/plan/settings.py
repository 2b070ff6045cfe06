"""Triton's settings of a variant: its own over the common ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base import model_config
from pipeline.base.triton_facts import NOT_FOR_ENGINES
from pipeline.data import images
from pipeline.plan.subject import Subject
from pipeline.schema.variants import Variant

DEFAULT_MAX_BATCH_SIZE = 32


def max_batch_size(subject: Subject, variant: Variant) -> int:
    """The variant's limit; 0 for a model without a batch dimension."""
    if subject.signature.batch is None:
        return 0
    own = variant.triton.get("max_batch_size")
    if own is not None:
        return int(own)
    common = subject.loaded.config.triton.max_batch_size
    return DEFAULT_MAX_BATCH_SIZE if common is None else common


def fields(subject: Subject, variant: Variant, *, engine: bool) -> dict[str, Any]:
    """The variant's ModelConfig fields, laid over the common ones; of these, an engine's instances are not on a CPU."""
    common = model_config.overlay(_image_parameters(subject), subject.loaded.config.triton.model_config_fields)
    if engine and common.get("instance_group"):
        common["instance_group"] = _on_gpus(common["instance_group"])
    own = {key: value for key, value in variant.triton.items() if key != "max_batch_size"}
    return model_config.overlay(common, own)


def _image_parameters(subject: Subject) -> dict[str, Any]:
    """How images become the input, so that ``predict`` can prepare one by asking the server alone."""
    loaded, how = subject.loaded, subject.signature.image
    data = loaded.train_data or loaded.samples_data
    if how is None and data is not None and (data.images or data.dataset):
        how = images.of_data(data, subject.signature)
    return {"parameters": {"preprocess": {"string_value": how.to_json()}}} if how else {}


def _on_gpus(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The groups an engine can run in; where there is none, all of them with a GPU in place of their CPU."""
    usable = [group for group in groups if group.get("kind") not in NOT_FOR_ENGINES]
    return usable or [{**group, "kind": "KIND_GPU"} for group in groups]
