"""A version for TorchServe, and its proof.

``<root>.torchserve/<name>/<N>/`` holds ``model_store/<name>.mar`` and ``config.properties``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.base import files
from pipeline.base.step import tool_versions
from pipeline.base.values import Artifact, RepositoryEntry, SmokeCheck
from pipeline.machine.environment import TORCHSERVE
from pipeline.repository.versions import Version
from pipeline.schema.torchserve import TorchServe
from pipeline.servers.planned import DeploymentPlan
from pipeline.servers.torchserve import checks, server, store
from pipeline.servers.work import Emission, Given, Making, Suite


def archive(given: Given[DeploymentPlan], making: Making) -> Iterator[Emission]:
    """The archive, and config.properties beside its store."""
    settings, scores, labelled = given.row.settings, given.scores, given.signature.outputs
    assert isinstance(settings, TorchServe)
    folder, properties = making.folder.absolute() / "model_store", making.folder / "config.properties"
    folder.mkdir()
    config = store.model_config(
        given.signature, settings, startup_timeout_s=round(given.serve.start_timeout_s), scores=scores
    )
    labels = scores[1].labels if scores else next((spec.labels for spec in labelled if spec.labels), ())
    path = store.archive(folder, name=given.row.model, module=making.artifact.path, config=config, labels=labels)
    properties.write_text(store.properties(given.row.model), encoding="utf-8")
    artifact = Artifact(
        path=path,
        kind="mar",
        sha256=files.sha256_file(path),
        size_bytes=path.stat().st_size,
        tool_versions=tool_versions(TORCHSERVE),
    )
    version = Version(
        model_name=given.row.model,
        file_name="model_store",
        artifact=folder,
        beside={"config.properties": properties},
        model_files={},
        golden=given.golden_path,
        manifest={
            **making.origin,
            "variant": given.row.variant.key,
            "format": artifact.kind,
            "precision": given.row.precision,
            "sha256": artifact.sha256,
            "properties": {"module_sha256": making.artifact.sha256},
            "tool_versions": dict(artifact.tool_versions),
            "source": {"sha256": making.manifest["source"]["sha256"]},
        },
    )
    yield Emission(version=version, artifact=artifact)


@contextlib.contextmanager
def launched(given: Given[DeploymentPlan], entry: RepositoryEntry, intact: SmokeCheck) -> Iterator[Suite]:
    """The real TorchServe on a version's store, to be asked everything."""
    settings, serve, log_path = given.row.settings, given.serve, given.directory / f"{given.row.identifier}.server.log"
    assert isinstance(settings, TorchServe)
    with server.launched(
        entry.version_dir, [given.row.model], log_path=log_path, start_timeout_s=serve.start_timeout_s
    ) as served:
        expectation = checks.TorchServeExpectation(
            model=given.row.model,
            signature=given.signature,
            golden=given.golden,
            batch_size=given.row.max_batch_size,
            max_batch_delay_ms=settings.max_batch_delay_ms,
            workers=settings.workers,
            tolerance=given.row.variant.tolerance,
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
