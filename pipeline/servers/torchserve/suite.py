"""The proof of an archive: the real TorchServe is launched on it, and asked everything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.schema.torchserve import TorchServe
from pipeline.servers.torchserve import checks, server
from pipeline.servers.work import Given, Proving, Suite


@contextlib.contextmanager
def launched(given: Given, proving: Proving) -> Iterator[Suite]:
    """TorchServe on the version's store."""
    settings, serve, log_path = given.settings, given.serve, proving.directory / f"{given.identifier}.server.log"
    assert isinstance(settings, TorchServe)
    assert settings.batch_size is not None
    with server.launched(
        proving.entry.version_dir, [given.model], log_path=log_path, start_timeout_s=serve.start_timeout_s
    ) as served:
        expectation = checks.TorchServeExpectation(
            model=given.model,
            signature=given.signature,
            golden=given.golden,
            batch_size=settings.batch_size,
            max_batch_delay_ms=settings.max_batch_delay_ms,
            workers=settings.workers,
            tolerance=given.variant.tolerance,
            scores=given.scores,
            alive=served.check_alive,
        )
        timeout_s = serve.request_timeout_s
        yield Suite(
            check=lambda progress, done: checks.run(
                served.server, served.management_url, expectation, request_timeout_s=timeout_s, progress=progress
            ),
            measure=lambda progress: checks.measured(
                served.server, expectation, request_timeout_s=timeout_s, progress=progress
            ),
            at=served.server.http_url,
            log=log_path,
        )
