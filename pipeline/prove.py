"""Serves what stands in the repository and smoke-tests it: the served end of a build."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import model_config, samples
from pipeline.artifacts import GoldenSamples, RepositoryEntry, RunningServer, SmokeCheck, SmokeResult
from pipeline.errors import SmokeError, StageError
from pipeline.plan import Variant
from pipeline.repository import config_pbtxt, versions
from pipeline.run import Run
from pipeline.smoke.expectation import Expectation


def adopt(run: Run) -> None:
    """Take the newest versions in the repository as what shall be proven."""
    for variant in run.plan.variants:
        numbers = versions.version_numbers(run.plan.repository / variant.identifier)
        if numbers:
            run.update(variant, entry=_entry(run, variant, numbers[-1]))
        else:
            missing = StageError(
                f"smoke[{variant.identifier}]: nothing to serve",
                where=str(run.plan.repository),
                hint="build it first, or name --repository or --url",
            )
            run.fail(variant, missing, "build")


def _entry(run: Run, variant: Variant, number: int) -> RepositoryEntry:
    return RepositoryEntry(
        root=run.plan.repository,
        model_name=variant.identifier,
        version=number,
        backend=config_pbtxt.BACKENDS[variant.kind].name,
        config_path=run.plan.repository / variant.identifier / "config.pbtxt",
        created=False,
    )


def prove(run: Run) -> None:
    """Serve all emitted variants together and smoke-test each; when the server refuses, each alone.

    Engines that cannot run here are only held against their manifests.
    """
    emitted = [variant for variant in run.plan.variants if run.results[variant.key].entry]
    rows = [variant for variant in emitted if _servable(variant)]
    for variant in emitted:
        if variant.engine and not _servable(variant):
            run.update(variant, unmeasured=variant.engine.obstacle)
            with run.guarded(variant, "smoke"):
                _intact(run, variant)
    try:
        if rows:
            _serve_and_smoke(run, rows)
    except SmokeError as failure:
        if len(rows) == 1:
            run.fail(rows[0], failure, "smoke")
            return
        for variant in rows:
            with run.guarded(variant, "smoke"):
                _serve_and_smoke(run, [variant])


def _servable(variant: Variant) -> bool:
    """Whether this machine can run it; an engine needs a GPU."""
    return variant.engine is None or not variant.engine.obstacle


def _intact(run: Run, variant: Variant) -> None:
    """Hold the files of a version against its manifest.

    Raises:
        SmokeError: they are not what was published.
    """
    damaged = tuple(check for check in _manifest_check(run, variant) if check.outcome == "failed")
    if damaged:
        result = SmokeResult(model=variant.identifier, checks=damaged)
        run.update(variant, smoke=result)
        raise _failure(variant, result, None)


def prove_at(run: Run, server: RunningServer) -> None:
    """Smoke-test every variant on a server that is running already."""
    from pipeline.smoke import connection

    for variant in run.plan.variants:
        with run.guarded(variant, "smoke"):
            if variant.engine and variant.identifier not in connection.ready_models(server.http_url):
                run.update(variant, skipped=f"{server.http_url} does not serve it: an engine needs a server with a GPU")
                continue
            served = connection.ready_versions(server.http_url, variant.identifier)
            run.update(variant, entry=_entry(run, variant, max(served)))
            _smoke(run, variant, server, lambda: None, served)
            run.update(variant, unmeasured="a server that others may be using is not put under load")


def _serve_and_smoke(run: Run, rows: Sequence[Variant]) -> None:
    with _launched(run, [variant.identifier for variant in rows]) as (server, alive):
        proven: list[tuple[Variant, Expectation]] = []
        for variant in rows:
            with run.guarded(variant, "smoke"):
                numbers = versions.version_numbers(run.plan.repository / variant.identifier)
                served = model_config.served_versions(run.model_files(variant).config, numbers)
                proven.append((variant, _smoke(run, variant, server, alive, served)))
        _measure(run, server, proven)


@contextlib.contextmanager
def _launched(run: Run, names: Sequence[str]) -> Iterator[tuple[RunningServer, Callable[[], None]]]:
    config = run.plan.loaded.config
    log_path = run.server_log = run.directory / "server.log"
    start_timeout_s = config.serve.start_timeout_s
    with contextlib.ExitStack() as stack:
        with run.stage("server", config.name) as stage:
            if config.serve.engine == "container":
                from pipeline.serve import container

                launch = container.launch(
                    run.plan.repository,
                    names,
                    release=run.plan.limits.release,
                    log_path=log_path,
                    start_timeout_s=start_timeout_s,
                )
            else:
                from pipeline.serve import triton

                launch = triton.embedded(run.plan.repository, names, log_path=log_path, start_timeout_s=start_timeout_s)
            running = stack.enter_context(launch)
            stage.result = f"{len(names)} models ready at {running.server.http_url}"
        yield running.server, running.check_alive


def _smoke(
    run: Run, variant: Variant, server: RunningServer, alive: Callable[[], None], served: Sequence[int]
) -> Expectation:
    """Run every check; return what was expected.

    Raises:
        SmokeError: the server does not answer, or not what it should.
    """
    from pipeline.smoke import checks

    expectation = checks.Expectation(
        model=variant.identifier,
        signature=run.signature,
        max_batch_size=variant.max_batch_size,
        versions=_golden_by_version(run, variant, served),
        tolerance=variant.tolerance,
        config=run.model_files(variant).config,
        alive=alive,
    )
    with run.stage(f"smoke[{variant.identifier}]", variant.identifier) as stage:
        result = checks.run(
            server.http_url,
            server.grpc_url,
            expectation,
            request_timeout_s=run.plan.loaded.config.serve.request_timeout_s,
            progress=stage.progress,
        )
        result = replace(result, checks=(*_manifest_check(run, variant), *result.checks))
        run.update(variant, smoke=result)
        stage.result = f"{len(result.checks)} checks"
        if not result.passed:
            raise _failure(variant, result, run.server_log)
    return expectation


def _measure(run: Run, server: RunningServer, proven: Sequence[tuple[Variant, Expectation]]) -> None:
    """Note how fast each answers; a server that gives out under that is said, and is no failure of the variant."""
    from pipeline.smoke import measure
    from pipeline.smoke.connection import GrpcConnection

    if not proven:
        return
    config = run.plan.loaded.config
    with run.stage("measure", config.name) as stage, contextlib.ExitStack() as stack:
        timeout_s = config.serve.request_timeout_s
        connection = stack.enter_context(contextlib.closing(GrpcConnection(server.grpc_url, timeout_s)))
        subjects = [measure.subject(connection, expectation) for _, expectation in proven]
        results = measure.in_rounds(subjects, stage.progress)
        for (variant, _), result in zip(proven, results, strict=True):
            entry = run.results[variant.key].entry
            assert entry is not None
            if isinstance(result, SmokeError):
                run.update(variant, unmeasured=" ".join(f"{result.what}: {result.found}".removesuffix(": ").split()))
            else:
                memory_bytes = measure.resident_bytes(server.pid, entry.version_dir)
                run.update(variant, measurement=replace(result, memory_bytes=memory_bytes))
        lost = sum(isinstance(result, SmokeError) for result in results)
        stage.result = f"{len(results) - lost} models" + (f", {lost} not measured" if lost else "")


def _manifest_check(run: Run, variant: Variant) -> tuple[SmokeCheck, ...]:
    """Whether the files served are those that were proven; nothing to say of a repository that is not here."""
    entry = run.results[variant.key].entry
    assert entry is not None
    manifest = versions.read_manifest(entry.root, entry.model_name, entry.version)
    if manifest is None:
        return ()
    damage = versions.corruption(entry.version_dir, manifest)
    return (SmokeCheck(name="manifest", protocol="-", outcome="failed" if damage else "passed", detail=damage),)


def _golden_by_version(run: Run, variant: Variant, served: Sequence[int]) -> Mapping[int, GoldenSamples | None]:
    """What each served version must answer: the newest the current samples, older ones those they were judged by.

    A version that this tool did not write has no known answers: None, it only has to answer.
    """
    entry = run.results[variant.key].entry
    assert entry is not None
    golden: dict[int, GoldenSamples | None] = {entry.version: run.golden}
    for number in served:
        if number != entry.version:
            manifest = versions.read_manifest(entry.root, entry.model_name, number)
            golden[number] = samples.read(versions.golden_path(entry.root, manifest)) if manifest else None
    return golden


def _failure(variant: Variant, result: SmokeResult, log: Path | None) -> SmokeError:
    failed = [check for check in result.checks if check.outcome == "failed"]
    return SmokeError(
        f"smoke[{variant.identifier}]: {len(failed)} of {len(result.checks)} checks failed",
        found="\n".join(f"{check.name} ({check.protocol}): {check.detail}" for check in failed),
        hint="read the server's log; do not publish this version",
        log=str(log) if log else "",
    )
