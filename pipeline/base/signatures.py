"""Signatures as JSON values, for what runs in another process, and with the labels that only the source knows."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from pipeline.base.errors import StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.images.preprocessing import Preprocessing


def to_json(signature: Signature) -> dict[str, Any]:
    """JSON values that ``from_json`` reads back."""
    return asdict(signature)


def from_json(values: Mapping[str, Any]) -> Signature:
    """The signature that ``to_json`` wrote."""
    inputs, outputs = (specs(values[side]) for side in ("inputs", "outputs"))
    image = Preprocessing.from_json(json.dumps(values["image"])) if values["image"] else None
    return Signature(inputs=inputs, outputs=outputs, batch=values["batch"], image=image)


def specs(rows: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs from JSON values."""
    return tuple(TensorSpec(**{**row, "shape": tuple(row["shape"]), "labels": tuple(row["labels"])}) for row in rows)


def unlabelled(signature: Signature) -> Signature:
    """What the source and calibration depend on: how images become tensors too, but not what scores are called."""
    return replace(signature, outputs=tuple(replace(spec, labels=()) for spec in signature.outputs))


def tensors(signature: Signature) -> Signature:
    """The part that model files depend on: names, dtypes, shapes and layouts."""
    return replace(unlabelled(signature), image=None)


def labelled(signature: Signature, outputs: Collection[str], labels: tuple[str, ...]) -> Signature:
    """With the source's labels for the outputs that the YAML says take them."""
    filled = tuple(replace(spec, labels=labels) if spec.name in outputs else spec for spec in signature.outputs)
    return replace(signature, outputs=filled)


def check_labels(signature: Signature, places: Mapping[str, str]) -> None:
    """Hold every output's labels against its last dimension; ``places`` says where in the YAML they are, by output.

    Raises:
        StageError: their numbers differ.
    """
    for spec in signature.outputs:
        if spec.labels and isinstance(spec.shape[-1], int) and spec.shape[-1] != len(spec.labels):
            what = f"labels: output {spec.name} has {spec.shape[-1]} scores and {len(spec.labels)} labels"
            raise StageError(what, where=places[spec.name], hint="give one label per score")
