"""Proves what Triton does not serve: each row by its own server's means, against the golden samples."""

from __future__ import annotations

import contextlib
import pkgutil
from dataclasses import replace

from pipeline.base.values import RepositoryEntry, SmokeResult
from pipeline.build.emission import require
from pipeline.build.run import Run
from pipeline.plan import DeploymentPlan, Row
from pipeline.repository.manifest import manifest_check
from pipeline.servers.table import SERVERS
from pipeline.servers.work import Prove, Suite


def prove(run: Run) -> None:
    """Prove every row that has a version and whose server has a proof of its own; a failure is kept to its row."""
    for row in run.plan.rows:
        result, function = run.results[row.key], SERVERS[row.server].prove
        if function and result.entry is not None and not result.error:
            with run.guarded(row, "smoke"):
                _prove(run, row, result.entry, pkgutil.resolve_name(function))


def _prove(run: Run, row: Row, entry: RepositoryEntry, launched: Prove) -> None:
    if isinstance(row, DeploymentPlan):
        require(row, row.lacking_to_serve)
    intact = manifest_check(entry)
    with contextlib.ExitStack() as stack:
        suite = _launched(run, row, launched(run.given(row), entry, intact), stack)
        run.note(row, *suite.notes)
        run.update(row, unmeasured=suite.unmeasured)
        if suite.check is None:
            if intact.outcome == "failed":
                run.judge(row, SmokeResult(model=row.identifier, checks=(intact,)))
            return
        with run.stage(f"{suite.stage}[{row.identifier}]", row.identifier) as stage:
            result = suite.check(stage.progress, lambda step, log_path: run.step(step, stage, log_path))
            result = replace(result, checks=(intact, *result.checks))
            stage.result = f"{len(result.checks)} checks"
            run.judge(row, result, log=suite.log)
        run.prove(entry, suite.level)
        if suite.measure is not None:
            with run.stage(f"measure[{row.identifier}]", row.identifier) as stage:
                run.measured(row, suite.measure(stage.progress))


def _launched(
    run: Run, row: Row, launching: contextlib.AbstractContextManager[Suite], stack: contextlib.ExitStack
) -> Suite:
    if not SERVERS[row.server].launches:
        return stack.enter_context(launching)
    with run.stage(f"server[{row.identifier}]", row.identifier) as stage:
        suite = stack.enter_context(launching)
        stage.result = f"READY at {suite.at}"
    return suite
