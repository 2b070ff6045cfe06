"""Serves what stands in the repository and smoke-tests it: the served end of a build."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import SmokeError
from pipeline.base.values import GoldenSamples, RepositoryEntry, RunningServer, SmokeCheck, SmokeResult
from pipeline.build import ensemble
from pipeline.build.run import Run
from pipeline.data import samples
from pipeline.formats.tensorrt import plan_file
from pipeline.plan import EnsemblePlan, Variant
from pipeline.repository import versions
from pipeline.servers.triton.proof.expectation import Expectation, ImagesExpectation

Served = Variant | EnsemblePlan
"""The rows of a report that Triton serves."""
Expected = Expectation | ImagesExpectation


def adopt(run: Run) -> None:
    """Take the newest versions in the repository as what shall be proven."""
    for row in _served_rows(run):
        run.adopt(row, run.plan.root(row), row.identifier)


def _served_rows(run: Run) -> tuple[Served, ...]:
    """What Triton serves: variants, and the ensemble."""
    variants = tuple(variant for variant in run.plan.variants if variant.server == "triton")
    return (*variants, *([run.plan.ensemble] if run.plan.ensemble else []))


def prove(run: Run) -> None:
    """Serve what stands in a repository together and smoke-test each; when the server refuses, each alone.

    One repository after the other: each has to do without the others. Engines that cannot be served here are only held
    against what was written down of them.
    """
    emitted = [row for row in _served_rows(run) if run.results[row.key].entry]
    obstacles = {row.key: _obstacle(run, row) for row in emitted}
    rows = [row for row in emitted if not obstacles[row.key]]
    for row in emitted:
        if obstacles[row.key]:
            run.update(row, unmeasured=obstacles[row.key])
            with run.guarded(row, "smoke"):
                _intact(run, row)
    for root in dict.fromkeys(run.plan.root(row) for row in rows):
        _prove_together(run, [row for row in rows if run.plan.root(row) == root])


def _prove_together(run: Run, rows: Sequence[Served]) -> None:
    try:
        _serve_and_smoke(run, rows)
    except SmokeError as failure:
        if len(rows) == 1:
            run.fail(rows[0], failure, "smoke")
            return
        for row in rows:
            with run.guarded(row, "smoke"):
                _serve_and_smoke(run, [row])


def _answering(row: Served) -> Variant:
    return row.variant if isinstance(row, EnsemblePlan) else row


def _models(row: Served) -> tuple[str, ...]:
    """The models that have to be loaded, the row's own last."""
    return (*row.models, row.name) if isinstance(row, EnsemblePlan) else (row.identifier,)


def _obstacle(run: Run, row: Served) -> str:
    """Why it cannot be served here, or empty; an engine needs a GPU and a server that has its backend."""
    engine = _answering(row).engine
    if engine is None:
        return ""
    if engine.spec.flavour == "tensorrt_rtx" and run.plan.loaded.config.serve.engine == "container":
        return "no container has a backend for TensorRT-RTX"
    return engine.obstacle


def _intact(run: Run, row: Served) -> None:
    """Hold the files of a version against its manifest or, where that is not here, its engines against their sidecars.

    Raises:
        SmokeError: they are not what was published.
    """
    checks = _manifest_check(run, row) or _engine_check(run, _answering(row))
    damaged = tuple(check for check in checks if check.outcome == "failed")
    if damaged:
        run.judge(row, SmokeResult(model=row.identifier, checks=damaged))


def _engine_check(run: Run, variant: Variant) -> tuple[SmokeCheck, ...]:
    """Whether a variant's engines are those that their sidecars tell of; nothing to say where there is no version."""
    entry = run.results[variant.key].entry
    if entry is None:
        return ()
    assert variant.engine is not None
    found = {
        path.name: plan_file.unlike_sidecar(path, variant.engine.spec.flavour)
        for path in sorted(entry.version_dir.iterdir())
        if path.suffix in (".plan", ".engine")
    }
    detail = "; ".join(f"{name}: {damage}" for name, damage in found.items() if damage)
    detail = detail if found else f"version {entry.version} has no engine"
    return (SmokeCheck(name="engine", protocol="-", outcome="failed" if detail else "passed", detail=detail),)


def prove_at(run: Run, server: RunningServer) -> None:
    """Smoke-test every variant, and the ensemble, on a server that is running already."""
    from pipeline.servers.triton.client import readiness

    for row in run.plan.rows:
        if row.server != "triton":
            run.update(row, skipped=f"{server.http_url} is a Triton server, which does not serve it")
    for row in _served_rows(run):
        with run.guarded(row, "smoke"):
            if _answering(row).engine and (reason := readiness.not_loaded(server.http_url, row.identifier)):
                found = f"{server.http_url} does not serve it: {reason}"
                run.update(row, skipped=f"{found}; an engine needs a server with a GPU")
                continue
            served = readiness.ready_versions(server.http_url, row.identifier)
            newest = RepositoryEntry(
                root=run.plan.root(row), model_name=row.identifier, version=max(served), created=False
            )
            run.update(row, entry=newest)
            _smoke(run, row, server, lambda: None, served)
            run.update(row, unmeasured="a server that others may be using is not put under load")


def _serve_and_smoke(run: Run, rows: Sequence[Served]) -> None:
    root = run.plan.root(rows[0])
    names = tuple(dict.fromkeys(name for row in rows for name in _models(row)))
    with _launched(run, root, names) as (server, alive):
        proven: list[tuple[Served, Expected]] = []
        for row in rows:
            with run.guarded(row, "smoke"):
                numbers = versions.version_numbers(root / row.identifier)
                served = model_config.served_versions(_config(run, row), numbers)
                expected = _smoke(run, row, server, alive, served)
                if isinstance(expected, ImagesExpectation) and not any(one.image for one in run.golden.samples):
                    run.update(row, unmeasured="the golden samples are no image files")
                else:
                    proven.append((row, expected))
        _measure(run, server, proven)


def _config(run: Run, row: Served) -> Any:
    if isinstance(row, EnsemblePlan):
        return ensemble.model_files(run, row)[row.name].config
    return run.model_files(row).config


@contextlib.contextmanager
def _launched(run: Run, root: Path, names: Sequence[str]) -> Iterator[tuple[RunningServer, Callable[[], None]]]:
    config = run.plan.loaded.config
    log_path = run.server_log = run.directory / "server.log"
    start_timeout_s = config.serve.start_timeout_s
    with contextlib.ExitStack() as stack:
        with run.stage("server", config.name) as stage:
            if config.serve.engine == "container":
                from pipeline.servers.triton import container

                launch = container.launch(
                    root, names, release=run.plan.limits.release, log_path=log_path, start_timeout_s=start_timeout_s
                )
            else:
                from pipeline.servers.triton import embedded as triton

                launch = triton.embedded(root, names, log_path=log_path, start_timeout_s=start_timeout_s)
            running = stack.enter_context(launch)
            stage.result = f"{len(names)} models ready at {running.server.http_url}"
        yield running.server, running.check_alive


def _smoke(run: Run, row: Served, server: RunningServer, alive: Callable[[], None], served: Sequence[int]) -> Expected:
    """Run every check; return what was expected.

    Raises:
        SmokeError: the server does not answer, or not what it should.
    """
    from pipeline.servers.triton.proof import checks, ensemble_checks

    timeout_s = run.plan.loaded.config.serve.request_timeout_s
    with run.stage(f"smoke[{row.identifier}]", row.identifier) as stage:
        arguments: dict[str, Any] = {"request_timeout_s": timeout_s, "progress": stage.progress}
        expected = _expected(run, row, alive, served)
        if isinstance(expected, ImagesExpectation):
            result = ensemble_checks.run(server.http_url, server.grpc_url, expected, **arguments)
        else:
            result = checks.run(server.http_url, server.grpc_url, expected, **arguments)
        result = replace(result, checks=(*_manifest_check(run, row), *result.checks))
        stage.result = f"{len(result.checks)} checks"
        run.judge(row, result, log=run.server_log)
    return expected


def _expected(run: Run, row: Served, alive: Callable[[], None], served: Sequence[int]) -> Expected:
    variant = _answering(row)
    if isinstance(row, Variant):
        return Expectation(
            model=variant.identifier,
            signature=run.signature,
            max_batch_size=variant.max_batch_size,
            versions=_golden_by_version(run, variant, served),
            tolerance=variant.tolerance,
            config=_config(run, variant),
            alive=alive,
        )
    (scores, after), before = run.scores, run.signature.image
    assert before is not None
    return ImagesExpectation(
        model=row.name,
        members=row.models,
        versions=served,
        config=_config(run, row),
        golden=run.golden,
        scores=scores,
        before=before,
        after=after,
        tolerance=variant.tolerance,
        alive=alive,
    )


def _measure(run: Run, server: RunningServer, proven: Sequence[tuple[Served, Expected]]) -> None:
    """Note how fast each answers; a server that gives out under that is said, and is no failure of the row."""
    from pipeline.proof import measure
    from pipeline.servers.triton.client.connection import GrpcConnection
    from pipeline.servers.triton.proof import measured

    if not proven:
        return
    config = run.plan.loaded.config
    with run.stage("measure", config.name) as stage, contextlib.ExitStack() as stack:
        timeout_s = config.serve.request_timeout_s
        connection = stack.enter_context(contextlib.closing(GrpcConnection(server.grpc_url, timeout_s)))
        subjects = [
            measured.images(connection, expected.config, expected.golden)
            if isinstance(expected, ImagesExpectation)
            else measured.subject(connection, expected)
            for _, expected in proven
        ]
        results = measure.in_rounds(subjects, stage.progress)
        for (row, _), result in zip(proven, results, strict=True):
            if isinstance(result, SmokeError):
                run.update(row, unmeasured=" ".join(f"{result.what}: {result.found}".removesuffix(": ").split()))
            else:
                run.update(row, measurement=replace(result, memory_bytes=_resident_bytes(run, row, server.pid)))
        lost = sum(isinstance(result, SmokeError) for result in results)
        stage.result = f"{len(results) - lost} models" + (f", {lost} not measured" if lost else "")


def _resident_bytes(run: Run, row: Served, pid: int) -> int | None:
    """Memory of the processes that answer: the variant's own, or those of all that an ensemble asks."""
    from pipeline.servers.triton.proof import measured

    entry = run.results[row.key].entry
    assert entry is not None
    if isinstance(row, Variant):
        return measured.resident_bytes(pid, entry.version_dir)
    newest = {name: max(versions.version_numbers(entry.root / name)) for name in row.models}
    each = [measured.resident_bytes(pid, entry.root / name / str(number)) for name, number in newest.items()]
    return sum(count for count in each if count is not None) if all(each) else None


def _manifest_check(run: Run, row: Served) -> tuple[SmokeCheck, ...]:
    """Whether the files served are those that were proven; nothing to say of a repository that is not here."""
    entry = run.results[row.key].entry
    assert entry is not None
    damages = []
    for name in _models(row):
        numbers = versions.version_numbers(entry.root / name)
        number = entry.version if name == row.identifier else max(numbers, default=0)
        manifest = versions.read_manifest(entry.root, name, number)
        if manifest is not None:
            damages.append(versions.corruption(entry.root / name / str(number), manifest))
    if not damages:
        return ()
    detail = "; ".join(damage for damage in damages if damage)
    return (SmokeCheck(name="manifest", protocol="-", outcome="failed" if detail else "passed", detail=detail),)


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
