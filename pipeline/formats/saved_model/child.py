"""What runs in the TensorFlow process: ``python -m pipeline.formats.saved_model.child SOCKET``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from pipeline.base.errors import PipelineError
from pipeline.base.values import Progress, Tensors
from pipeline.formats.saved_model import messages
from pipeline.formats.saved_model.messages import Answer, Values

Job = Callable[[Values, Tensors, Progress], Answer]


def main(descriptor: int) -> None:
    """Say whether TensorFlow loads, then do jobs until the other side is gone."""
    connection = Connection(descriptor)
    try:
        jobs = _jobs()
    except ImportError as error:
        from pipeline.machine import remedies

        failure = {"kind": "MissingError", "what": "TensorFlow is needed and does not load", "found": str(error)}
        messages.send(connection, {"failure": {**failure, "hint": remedies.TENSORFLOW}})
        return
    messages.send(connection, {"ready": True})

    def tell(text: str, share: float | None) -> None:
        messages.send(connection, {"progress": [text, share]})

    while True:
        try:
            values, arrays = messages.receive(connection)
        except (EOFError, ConnectionResetError):
            return
        messages.send(connection, *_done(jobs[values["job"]], values, arrays, tell))


def _jobs() -> Mapping[str, Job]:
    """Every job by its name; importing their modules imports TensorFlow."""
    from pipeline.formats.saved_model import models, saving, serving, training

    return {
        "open": models.open_model,
        "run": models.run,
        "check": models.check,
        "train": training.train,
        "save": saving.save,
        "onnx": saving.to_onnx,
        "metadata": serving.metadata,
        "request": serving.request,
        "answer": serving.answer,
        "response": serving.response,
    }


def _done(job: Job, values: Values, arrays: Tensors, tell: Progress) -> Answer:
    try:
        return job(values, arrays, tell)
    except PipelineError as error:
        kind = type(error).__name__
        texts = {"what": error.what, "found": error.found, "where": error.where, "hint": error.hint}
        return {"failure": {"kind": kind, **texts}}, {}
    except BaseException:  # noqa: BLE001 - the other side raises it again
        return {"bug": traceback.format_exc()}, {}


if __name__ == "__main__":
    main(int(sys.argv[1]))
