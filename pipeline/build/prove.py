"""Serves what stands in a root, a candidate or a repository, and smoke-tests it: the served end of a build."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.errors import SmokeError, StageError
from pipeline.base.values import GoldenSamples, ProofLevel, RepositoryEntry, RunningServer, SmokeCheck, SmokeResult
from pipeline.build.books import Books, Named
from pipeline.formats.tensorrt import plan_file
from pipeline.machine.tensorrt_flavours import FlavourName
from pipeline.proof import record
from pipeline.repository import versions
from pipeline.repository.manifest import corruption, read_manifest
from pipeline.schema.serving import Serve
from pipeline.servers.triton.proof.expectation import Expectation, ImagesExpectation

Expected = Expectation | ImagesExpectation
Alive = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How servers are launched and asked.

    Attributes:
        name: of all that is proven together, for its log.
        release: of the container, where there is one.
    """

    name: str
    release: str
    serve: Serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A row that Triton serves, and what is right of it.

    Attributes:
        row: its row of the report.
        entry: the version that is to be proven, in the root that is served.
        known: what is right of its answers, besides golden samples.
        golden: those of a model's version; None where what is right is not known.
        members: the models it asks, with the versions it reaches; empty for a plain model.
        config: the ModelConfig message that is to be served.
        flavour: of the engine, where it is one or asks one.
        obstacle: why it cannot be served here, or empty.
    """

    row: Named
    entry: RepositoryEntry
    known: record.ModelRecord | record.ImagesRecord
    golden: Callable[[str, int], GoldenSamples | None]
    members: Mapping[str, int]
    config: Any
    flavour: FlavourName = "tensorrt"
    obstacle: str = ""

    @property
    def served(self) -> list[int]:
        """The versions that its configuration serves."""
        numbers = versions.version_numbers(self.entry.root / self.entry.model_name)
        return model_config.served_versions(self.config, numbers)

    @property
    def parts(self) -> tuple[str, ...]:
        """The models it asks that nothing else proves."""
        known = self.known
        return tuple(
            name for name in self.members if isinstance(known, record.ImagesRecord) and name != known.answering
        )

    def expected(self, served: Sequence[int], alive: Alive) -> Expected:
        """What is right, given the versions that are served and what raises when the server has ended.

        Raises:
            StageError: what is right is not known.
        """
        known, model = self.known, self.row.identifier
        if isinstance(known, record.ModelRecord):
            return Expectation(
                model=model,
                signature=known.signature,
                max_batch_size=known.max_batch_size,
                versions={number: self.golden(model, number) for number in served},
                tolerance=known.tolerance,
                config=self.config,
                alive=alive,
            )
        number = self.members[known.answering]
        golden = self.golden(known.answering, number)
        if golden is None:
            raise StageError(
                f"smoke[{model}]: version {number} of {known.answering}, which answers in it, was not written by this "
                "tool: what is right is not known"
            )
        return ImagesExpectation(
            model=model,
            members=tuple(self.members),
            versions=served,
            config=self.config,
            golden=golden,
            scores=known.scores,
            before=known.before,
            after=known.after,
            tolerance=known.tolerance,
            alive=alive,
        )


def prove_at(books: Books, serving: Serving, subject: Subject, server: RunningServer, served: Sequence[int]) -> None:
    """Smoke-test a row on a server that is running already, and that is asked no more than that.

    Raises:
        SmokeError: the server does not answer, or not what it should.
    """
    smoke(books, serving, subject, server, lambda: None, served)
    books.update(subject.row, proof="served", unmeasured="a server that others may be using is not put under load")


def skips_at(books: Books, row: Named, server: RunningServer) -> bool:
    """Whether a running server does not serve an engine, for want of a GPU or otherwise; that is noted."""
    from pipeline.servers.triton.client import readiness

    if reason := readiness.not_loaded(server.http_url, row.identifier):
        found = f"{server.http_url} does not serve it: {reason}"
        books.update(row, skipped=f"{found}; an engine needs a server with a GPU")
    return bool(reason)


def prove(books: Books, serving: Serving, subjects: Sequence[Subject]) -> None:
    """Serve all of a root together and smoke-test each; when the server refuses, each alone.

    One repository after the other: each has to do without the others. Engines that cannot be served here are only held
    against what was written down of them.
    """
    for subject in subjects:
        if subject.obstacle:
            books.update(subject.row, unmeasured=subject.obstacle)
            with books.guarded(subject.row, "smoke"):
                _intact(books, subject)
    able = [subject for subject in subjects if not subject.obstacle]
    for root in dict.fromkeys(subject.entry.root for subject in able):
        _prove(books, serving, root, [subject for subject in able if subject.entry.root == root])


def _prove(books: Books, serving: Serving, root: Path, subjects: Sequence[Subject]) -> None:
    try:
        _serve_and_smoke(books, serving, root, subjects)
    except SmokeError as failure:
        if len(subjects) == 1:
            books.fail(subjects[0].row, failure, "smoke")
            return
        for subject in subjects:
            with books.guarded(subject.row, "smoke"):
                _serve_and_smoke(books, serving, root, [subject])


def _intact(books: Books, subject: Subject) -> None:
    """Hold the files of a version against its manifest or, where that is not here, its engines against their sidecars.

    Raises:
        SmokeError: they are not what was built.
    """
    entry = subject.entry
    checks = _manifest_check(subject, [entry.version]) or _engine_check(entry, subject.flavour)
    damaged = tuple(check for check in checks if check.outcome == "failed")
    if damaged:
        books.judge(subject.row, SmokeResult(model=subject.row.identifier, checks=damaged))
    books.prove(entry, "inspected")
    for name in subject.parts:
        books.levels[entry.root, name, subject.members[name]] = "inspected"


def _engine_check(entry: RepositoryEntry, flavour: FlavourName) -> tuple[SmokeCheck, ...]:
    """Whether a version's engines are those that their sidecars tell of."""
    found = {
        path.name: plan_file.unlike_sidecar(path, flavour)
        for path in sorted(entry.version_dir.iterdir())
        if path.suffix in (".plan", ".engine")
    }
    detail = "; ".join(f"{name}: {damage}" for name, damage in found.items() if damage)
    detail = detail if found else f"version {entry.version} has no engine"
    return (SmokeCheck(name="engine", protocol="-", outcome="failed" if detail else "passed", detail=detail),)


def _serve_and_smoke(books: Books, serving: Serving, root: Path, subjects: Sequence[Subject]) -> None:
    names = tuple(dict.fromkeys(name for one in subjects for name in (*one.members, one.entry.model_name)))
    with _launched(books, serving, root, names) as (server, alive):
        proven: list[tuple[Subject, Expected]] = []
        for subject in subjects:
            with books.guarded(subject.row, "smoke"):
                expected = smoke(books, serving, subject, server, alive, subject.served)
                if isinstance(expected, ImagesExpectation) and not any(one.image for one in expected.golden.samples):
                    books.update(subject.row, unmeasured="the golden samples are no image files")
                else:
                    proven.append((subject, expected))
        _measure(books, serving, server, proven)


@contextlib.contextmanager
def _launched(
    books: Books, serving: Serving, root: Path, names: Sequence[str]
) -> Iterator[tuple[RunningServer, Alive]]:
    log_path = books.server_log = books.directory / "server.log"
    options: dict[str, Any] = {"log_path": log_path, "start_timeout_s": serving.serve.start_timeout_s}
    with contextlib.ExitStack() as stack:
        with books.stage("server", serving.name) as stage:
            if serving.serve.engine == "container":
                from pipeline.servers.triton import container

                launch = container.launch(root, names, release=serving.release, **options)
            else:
                from pipeline.servers.triton import embedded as triton

                launch = triton.embedded(root, names, **options)
            running = stack.enter_context(launch)
            stage.result = f"{len(names)} models ready at {running.server.http_url}"
        yield running.server, running.check_alive


def smoke(
    books: Books, serving: Serving, subject: Subject, server: RunningServer, alive: Alive, served: Sequence[int]
) -> Expected:
    """Run every check on a running server, and keep how far the versions are proven then; return what was expected.

    Raises:
        SmokeError: the server does not answer, or not what it should.
    """
    from pipeline.servers.triton.proof import checks, ensemble_checks

    row, entry = subject.row, subject.entry
    with books.stage(f"smoke[{row.identifier}]", row.identifier) as stage:
        arguments: dict[str, Any] = {"request_timeout_s": serving.serve.request_timeout_s, "progress": stage.progress}
        expected = subject.expected(served, alive)
        if isinstance(expected, ImagesExpectation):
            result = ensemble_checks.run(server.http_url, server.grpc_url, expected, **arguments)
        else:
            result = checks.run(server.http_url, server.grpc_url, expected, **arguments)
        result = replace(result, checks=(*_manifest_check(subject, served), *result.checks))
        stage.result = f"{len(result.checks)} checks"
        books.judge(row, result, log=books.server_log)
    level, judged = _judged(expected)
    asked = [(entry.model_name, number) for number in judged]
    for name, number in (*asked, *((part, subject.members[part]) for part in subject.parts)):
        books.levels[entry.root, name, number] = level
    if entry.version not in served:
        books.note(row, f"version {entry.version} was not served: version_policy serves {_listed(served)}")
    return expected


def _judged(expected: Expected) -> tuple[ProofLevel, list[int]]:
    """What passing proves, and of which versions; labels of samples that are no image files are compared to nothing."""
    if isinstance(expected, Expectation):
        return "served", [number for number, golden in expected.versions.items() if golden is not None]
    compared = any(sample.image for sample in expected.golden.samples)
    return "served" if compared else "inspected", list(expected.versions)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _measure(books: Books, serving: Serving, server: RunningServer, proven: Sequence[tuple[Subject, Expected]]) -> None:
    """Note how fast each answers; a server that gives out under that is said, and is no failure of the row."""
    from pipeline.proof import measure
    from pipeline.servers.triton.client.connection import GrpcConnection
    from pipeline.servers.triton.proof import measured

    if not proven:
        return
    with books.stage("measure", serving.name) as stage, contextlib.ExitStack() as stack:
        connection = stack.enter_context(
            contextlib.closing(GrpcConnection(server.grpc_url, serving.serve.request_timeout_s))
        )
        subjects = [
            measured.images(connection, expected.config, expected.golden)
            if isinstance(expected, ImagesExpectation)
            else measured.subject(connection, expected)
            for _, expected in proven
        ]
        results = measure.in_rounds(subjects, stage.progress)
        for (subject, _), result in zip(proven, results, strict=True):
            if not isinstance(result, SmokeError):
                result = replace(result, memory_bytes=_resident_bytes(subject, server.pid))
            books.measured(subject.row, result)
        lost = sum(isinstance(result, SmokeError) for result in results)
        stage.result = f"{len(results) - lost} models" + (f", {lost} not measured" if lost else "")


def _resident_bytes(subject: Subject, pid: int) -> int | None:
    """Memory of the processes that answer: the model's own, or those of all that an ensemble asks."""
    from pipeline.servers.triton.proof import measured

    root = subject.entry.root
    if not subject.members:
        return measured.resident_bytes(pid, subject.entry.version_dir)
    each = [measured.resident_bytes(pid, root / name / str(number)) for name, number in subject.members.items()]
    return sum(count for count in each if count is not None) if all(each) else None


def _manifest_check(subject: Subject, served: Sequence[int]) -> tuple[SmokeCheck, ...]:
    """Whether the files served are those that were built; nothing to say of a repository that is not here."""
    entry, damages = subject.entry, []
    asked = [*subject.members.items(), *((entry.model_name, number) for number in served)]
    for name, number in asked:
        manifest = read_manifest(entry.root, name, number)
        if manifest is not None:
            damages.append(corruption(entry.root / name / str(number), manifest))
    if not damages:
        return ()
    detail = "; ".join(damage for damage in damages if damage)
    return (SmokeCheck(name="manifest", protocol="-", outcome="failed" if detail else "passed", detail=detail),)
