"""The candidates of a build, from the first emission to the publication of what passed its proof."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.build.run import Run
from pipeline.plan import DeploymentPlan, Row
from pipeline.repository import candidate as candidates
from pipeline.repository import publish as publishing
from pipeline.repository.candidate import Candidate

LEFTOVERS = "candidates"  # in the work directory: which roots had a candidate, for `cache gc`


@contextlib.contextmanager
def opened(run: Run) -> Iterator[None]:
    """Candidates for all roots of a build, until the block is left; what was not published by then is gone.

    Raises:
        MissingError: a root cannot be written beside, or another build holds a model for too long.
    """
    models: dict[Path, list[str]] = {}
    for row in run.plan.rows:
        if row.published and not _is_lost(run, row):
            models.setdefault(row.root, []).extend(row.published)
    if not models:  # nothing was made
        yield
        return
    note = run.plan.work_dir / LEFTOVERS / run.run_id
    with contextlib.ExitStack() as stack:
        with run.stage("candidate", run.plan.loaded.config.name) as stage:
            stack.callback(note.unlink, missing_ok=True)
            files.write_atomic(note, "".join(f"{root}\n" for root in sorted(models)))
            for root in sorted(models):  # in one order, so that two builds never wait for each other
                opening = candidates.opened(
                    root,
                    models[root],
                    run_id=run.run_id,
                    waiting=lambda holder: stage.progress(f"waiting for {holder}", None),
                )
                run.candidates[root] = stack.enter_context(opening)
            stage.result = f"{sum(map(len, models.values()))} models at most"
        try:
            yield
        finally:
            _forget_unpublished(run)


def _is_lost(run: Run, row: Row) -> bool:
    """Whether there will be nothing to emit: a variant was not made, or the one that a deployment is made of."""
    made = run.results[row.variant.key]
    return bool(made.error or made.skipped)


def _forget_unpublished(run: Run) -> None:
    """What is only in a candidate is nothing that a report may name."""
    places = {candidate.path for candidate in run.candidates.values()}
    for key, result in run.results.items():
        if result.entry is not None and result.entry.root in places:
            row = next(row for row in run.plan.rows if row.key == key)
            run.update(row, entry=None, cached=False)


def publish(run: Run) -> None:
    """Publish every row that did not fail, members before their ensemble; a failure is kept to its row."""
    done: list[Row] = []
    for row in run.plan.rows:
        result = run.results[row.key]
        if result.entry is None or result.error:
            continue
        with run.guarded(row, "build"):
            _require_member(run, row)
            _publish(run, row, run.candidates[row.root])
            done.append(row)
    for row in done:
        with run.guarded(row, "build"):
            for model in row.published:
                publishing.narrow(run.candidates[row.root], model)
    _moved_levels(run)
    run.record_levels(done)


def _require_member(run: Run, row: Row) -> None:
    """An ensemble goes where its variant went, or nowhere.

    Raises:
        StageError: the variant was not published.
    """
    if not isinstance(row, DeploymentPlan) or not row.members:
        return
    entry, answering = run.results[row.variant.key].entry, row.variant.identifier
    if entry is None or entry.root != row.root:
        raise StageError(
            f"ensemble[{row.identifier}]: not published, because {answering}, which answers in it, was not",
            hint="see the error of that variant; the ensemble that stands goes on with the versions it names",
        )


def _publish(run: Run, row: Row, candidate: Candidate) -> None:
    with run.stage(f"repository[{row.identifier}]", row.identifier) as stage:
        found = {}
        for model in row.published:
            emitted = candidate.emitted[model]
            level = run.levels.get((candidate.path, model, emitted.version), "none")
            found[model] = publishing.put(
                candidate, model, proof=level, waiting=lambda holder: stage.progress(f"waiting for {holder}", None)
            )
            run.note(row, *found[model].notes)
        entry = found[row.published[-1]]
        stage.cached = not any(one.created for one in found.values())
        stage.result = " · ".join(f"{name} version {one.version}" for name, one in found.items())
        if len(found) == 1:
            stage.result = f"version {entry.version}"
        run.update(row, entry=entry)


def _moved_levels(run: Run) -> None:
    """What was proven in a candidate is proven of the repository's versions, older ones that were served beside too."""
    roots = {candidate.path: root for root, candidate in run.candidates.items()}
    run.levels = {(roots[path], model, number): level for (path, model, number), level in run.levels.items()}


def collect(work_dir: Path) -> tuple[int, int]:
    """Remove the candidates that builds from this work directory left behind when they died.

    Returns:
        How many builds there were, and how many bytes that freed.

    Raises:
        MissingError: not writable.
    """
    folder, count, freed = work_dir / LEFTOVERS, 0, 0
    for note in sorted(folder.iterdir()) if folder.is_dir() else ():
        roots = [Path(line) for line in note.read_text(encoding="utf-8").splitlines()]
        freed += sum(candidates.collect(root) for root in roots)
        if not any(candidates.is_alive(root, note.name) for root in roots):
            note.unlink()
            count += 1
    return count, freed
