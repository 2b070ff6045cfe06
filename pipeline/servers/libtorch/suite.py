"""The proof of a program: compiled and run on the golden images; where that cannot be done, the notes say why.

It is a cached step: the same sources, model, samples and tools are not compiled again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.base import command, signatures
from pipeline.base.step import Step, tool_versions
from pipeline.base.values import Progress, RepositoryEntry, SmokeCheck, SmokeResult
from pipeline.machine import doctor, environment
from pipeline.machine.environment import Environment
from pipeline.repository.manifest import read_manifest
from pipeline.servers.libtorch import proving as compiling
from pipeline.servers.work import Done, Given, Proving, Suite

_MOST_BATCHED = 32  # a batch of the proof; the model's limit may be far above what a quick proof needs
_UNMEASURED = "it is a program, which prints its own times"


@contextlib.contextmanager
def compiled(given: Given, proving: Proving) -> Iterator[Suite]:
    """A program whose files are those of its manifest, with what compiles it."""
    here, obstacle = environment.probe(proving.work_dir), ""
    if lacking := doctor.lacks_to_compile(here):
        obstacle = "; ".join(lacking)
    elif not all(sample.image for sample in given.golden.samples):
        obstacle = "the golden samples are no image files"
    if proving.intact.outcome == "failed":
        yield Suite(check=None, unmeasured=_UNMEASURED)
    elif obstacle:
        yield Suite(check=None, unmeasured=_UNMEASURED, notes=(f"emitted, not compiled here: {obstacle}",))
    else:
        log = proving.directory / f"{given.identifier}.program.log"
        check = partial(_check, given, proving, here, log)
        yield Suite(check=check, unmeasured=_UNMEASURED, stage="program", log=log)


def _check(given: Given, proving: Proving, here: Environment, log: Path, progress: Progress, done: Done) -> SmokeResult:
    (output, answers), limit = given.labelling, given.variant.max_batch_size
    tools = _tools(here)
    step = Step(
        name=f"program[{given.identifier}]",
        function="pipeline.servers.libtorch.proving:prove",
        arguments={
            "program": given.identifier,
            "signature": signatures.to_json(given.signature),
            "output": output,
            "answers": answers.to_json(),
            "tolerance": asdict(given.variant.tolerance),
            "batch_sizes": sorted({1, min(max(limit, 1), _MOST_BATCHED)}),
            "tools": tools,
        },
        unkeyed={
            "source": str(proving.entry.version_dir),
            "work": str(proving.directory / f"{given.identifier}.program"),
            **compiling.paths(here.cpp),
        },
        inputs=_recorded(proving.entry),
        tools=("numpy", "torch"),
        upstream={"samples": proving.samples},
    )
    try:
        made = done(step, log)
    except compiling.FailedError as failure:
        return failure.result
    compiled = SmokeCheck(name="compiled", protocol="-", outcome="passed", detail=", ".join(tools.values()))
    return SmokeResult(model=given.identifier, checks=(compiled, *(SmokeCheck(**row) for row in made.values["checks"])))


def _recorded(entry: RepositoryEntry) -> dict[str, str]:
    """Digests of the version's own files, which are those of its manifest: that has been checked."""
    manifest = read_manifest(entry.root, entry.model_name, entry.version)
    assert manifest is not None
    recorded: dict[str, str] = manifest["files"]
    return recorded


def _tools(here: Environment) -> dict[str, str]:
    """Versions of what compiles the program, each in words."""
    first = {
        name: command.run([str(path), "--version"], timeout_s=30.0).partition("\n")[0]
        for name, path in (("compiler", here.cpp.compiler), ("cmake", here.cpp.cmake))
    }
    return {
        **first,
        "opencv": f"OpenCV {here.cpp.opencv_version}",
        "torch": f"libtorch {tool_versions(('torch',))['torch']}",
    }
