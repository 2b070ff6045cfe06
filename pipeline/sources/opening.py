"""Opening what a source's step left: the model that everything else is made from and judged by."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.files import canonical_json
from pipeline.base.step import Task
from pipeline.base.values import Signature, SourceModel
from pipeline.schema.model import Source
from pipeline.sources import table


def opened(task: Task, signature: Signature) -> SourceModel:
    """The model of a step's upstream ``source``; arguments ``source``, as in the YAML, and ``folder``, the YAML's.

    Raises:
        StageError: it cannot be opened.
    """
    source = Source.model_validate_json(canonical_json(task.arguments["source"]))
    resolve, directory = Path(task.arguments["folder"]).joinpath, task.upstream["source"].directory
    return table.of(source).maker.opened(source, signature=signature, resolve=resolve, directory=directory)
