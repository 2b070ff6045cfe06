"""What an expectation needs, as values of a manifest: written by a build, read by a proof without its YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.base import signatures
from pipeline.base.errors import StageError
from pipeline.base.values import Signature, TensorSpec, Tolerance
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What is right of one model's answers, besides its golden samples."""

    signature: Signature
    max_batch_size: int
    tolerance: Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesRecord:
    """What is right of an ensemble's answers, besides the golden samples of the model that answers in it.

    Attributes:
        answering: the member whose scores become labels.
    """

    answering: str
    scores: str
    before: Preprocessing
    after: Postprocessing
    tolerance: Tolerance


def of_model(record: ModelRecord) -> dict[str, Any]:
    """JSON values."""
    return {
        "inputs": _rows(record.signature.inputs),
        "outputs": _rows(record.signature.outputs),
        "batch": record.signature.batch,
        "max_batch_size": record.max_batch_size,
        "tolerance": asdict(record.tolerance),
    }


def of_images(record: ImagesRecord) -> dict[str, Any]:
    """JSON values."""
    return {
        "answering": record.answering,
        "scores": record.scores,
        "preprocess": json.loads(record.before.to_json()),
        "postprocess": json.loads(record.after.to_json()),
        "tolerance": asdict(record.tolerance),
    }


def read(manifest: Mapping[str, Any], model: str) -> ModelRecord | ImagesRecord:
    """The record in a manifest.

    Raises:
        StageError: it has none: an older build of this tool wrote it.
    """
    try:
        found = manifest["serving"]
        tolerance = Tolerance(**found["tolerance"])
        if "answering" in found:
            return ImagesRecord(
                answering=found["answering"],
                scores=found["scores"],
                before=Preprocessing.from_json(json.dumps(found["preprocess"])),
                after=Postprocessing.from_json(json.dumps(found["postprocess"])),
                tolerance=tolerance,
            )
        inputs, outputs = (signatures.specs(found[side]) for side in ("inputs", "outputs"))
        signature = Signature(inputs=inputs, outputs=outputs, batch=found["batch"])
        return ModelRecord(signature=signature, max_batch_size=found["max_batch_size"], tolerance=tolerance)
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(
            f"smoke[{model}]: its manifest does not say what is right of it",
            found=f"no usable key {error}" if isinstance(error, KeyError) else str(error),
            hint="an older version of this tool wrote it: build it once more, or smoke it with its YAML",
        ) from error


def _rows(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{**asdict(spec), "shape": list(spec.shape), "labels": list(spec.labels)} for spec in specs]
