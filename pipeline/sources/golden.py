"""The step that makes the golden samples: held-out data, and what the source model answers to it."""

from __future__ import annotations

from dataclasses import asdict, replace

from pipeline.base import signatures
from pipeline.base.files import canonical_json
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress
from pipeline.data import samples
from pipeline.formats import opening
from pipeline.proof import source_accuracy
from pipeline.schema.model import Data, Samples


def make(task: Task, progress: Progress) -> Outcome:
    """Choose samples and ask the source model about each; see ``samples.make``.

    Arguments: ``samples``, ``train_data`` (or null) and ``source`` as in the YAML, ``seed``, ``signature``,
    ``source_labels`` (the outputs that take the source's). Unkeyed: ``folder`` of the YAML, ``label_places``.
    """
    given, source = task.arguments, task.upstream["source"].values
    data, labels = given["train_data"], tuple(source["labels"])
    signature = signatures.labelled(signatures.from_json(given["signature"]), given["source_labels"], labels)
    signatures.check_labels(signature, given["label_places"])
    model = opening.opened(task, signature)
    made = samples.make(
        Samples.model_validate_json(canonical_json(given["samples"])),
        Data.model_validate_json(canonical_json(data)) if data else None,
        signature=signature,
        resolve=opening.resolver(task),
        runtime=model.runtime,
        seed=given["seed"],
        out_dir=task.out_dir,
    )
    golden = samples.read(task.out_dir / samples.FILE_NAME)
    judged = source_accuracy.judge(
        golden,
        signature,
        classes=len(made.values["labels"]),
        trained=data is not None,
        held_out=None if source["accuracy"] is None else (source["accuracy"], source["test_samples"]),
    )
    notes = (*model.notes(), *made.notes, *source_accuracy.unvarying(golden))
    return replace(made, notes=notes, values={**made.values, "source": asdict(judged) if judged else None})
