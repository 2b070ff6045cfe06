"""The proof of a tree: by its files and TensorFlow's own loader and, with ``serve.engine: container``, by TF-Serving.

Without the container, TensorFlow's loader runs what the server would run, and the report says that the server was not
run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from pipeline.base.values import Progress, SmokeResult
from pipeline.proof.ledger import Ledger
from pipeline.servers.tfserving import checks, server
from pipeline.servers.work import Done, Given, Proving, Suite


@contextlib.contextmanager
def opened(given: Given, proving: Proving) -> Iterator[Suite]:
    """Holds a version against the golden samples, its manifest and TF-Serving's own messages."""
    if given.serve.engine == "container":
        yield Suite(check=partial(_check, given, proving))
        return
    note = "the server was not run: TensorFlow's own loader answered in its place"
    yield Suite(check=partial(_check, given, proving), level="inspected", notes=(note,))


def _check(given: Given, proving: Proving, progress: Progress, done: Done) -> SmokeResult:
    entry, ledger = proving.entry, Ledger()
    suite = checks.Suite(
        checks.TfServingExpectation(
            root=entry.root,
            model=given.model,
            version=entry.version,
            signature=given.signature,
            golden=given.golden,
            max_batch_size=given.variant.max_batch_size,
            tolerance=given.variant.tolerance,
            metadata_path=proving.directory / f"{given.identifier}.metadata.json",
        )
    )
    result = ledger.run(given.identifier, suite.offline(), progress)
    if given.serve.engine == "container":
        log_path, timeout_s = proving.directory / f"{given.identifier}.server.log", given.serve.start_timeout_s
        with server.launch(entry.root, given.model, log_path=log_path, start_timeout_s=timeout_s) as running:
            result = ledger.run(given.identifier, suite.served(running), progress)
    return result
