"""A C++ program, and its proof: ``<root>/<name>_<key>/<N>/`` holds the TorchScript file, its source and a README."""

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
from pipeline.repository.versions import Version
from pipeline.servers.libtorch import program, proving
from pipeline.servers.planned import Variant
from pipeline.servers.work import Done, Emission, Given, Making, Suite

_MOST_BATCHED = 32  # a batch of the proof; the model's limit may be far above what a quick proof needs
_UNMEASURED = "it is a program, which prints its own times"


def sources(given: Given[Variant], making: Making) -> Iterator[Emission]:
    """The variant's TorchScript file, with the program around it."""
    output, answers = given.labelling
    torch_version = tool_versions(("torch",))["torch"].partition("+")[0]
    written: dict[str, Path] = {}
    found = program.sources(given.row.identifier, given.signature, output, answers, torch_version=torch_version)
    for name, content in found.items():
        written[name] = making.folder / name
        written[name].write_bytes(content)
    version = Version(
        model_name=given.row.identifier,
        file_name=program.MODEL_FILE,
        artifact=making.artifact.path,
        beside=written,
        model_files={},
        golden=given.golden_path,
        manifest=making.manifest,
    )
    yield Emission(version=version, artifact=making.artifact)


@contextlib.contextmanager
def compiled(given: Given[Variant], entry: RepositoryEntry, intact: SmokeCheck) -> Iterator[Suite]:
    """What compiles a program and runs it on the golden images; where that cannot be done, the notes say why.

    It is a cached step: the same sources, model, samples and tools are not compiled again.
    """
    here, obstacle = environment.probe(given.work_dir), ""
    if lacking := doctor.lacks_to_compile(here):
        obstacle = "; ".join(lacking)
    elif not all(sample.image for sample in given.golden.samples):
        obstacle = "the golden samples are no image files"
    if intact.outcome == "failed":
        yield Suite(check=None, unmeasured=_UNMEASURED)
    elif obstacle:
        yield Suite(check=None, unmeasured=_UNMEASURED, notes=(f"emitted, not compiled here: {obstacle}",))
    else:
        log = given.directory / f"{given.row.identifier}.program.log"
        check = partial(_check, given, entry, here, log)
        yield Suite(check=check, unmeasured=_UNMEASURED, stage="program", log=log)


def _check(
    given: Given[Variant], entry: RepositoryEntry, here: Environment, log: Path, progress: Progress, done: Done
) -> SmokeResult:
    (output, answers), limit = given.labelling, given.row.max_batch_size
    tools = _tools(here)
    step = Step(
        name=f"program[{given.row.identifier}]",
        function="pipeline.servers.libtorch.proving:prove",
        arguments={
            "program": given.row.identifier,
            "signature": signatures.to_json(given.signature),
            "output": output,
            "answers": answers.to_json(),
            "tolerance": asdict(given.row.tolerance),
            "batch_sizes": sorted({1, min(max(limit, 1), _MOST_BATCHED)}),
            "tools": tools,
        },
        unkeyed={
            "source": str(entry.version_dir),
            "work": str(given.directory / f"{given.row.identifier}.program"),
            **proving.paths(here.cpp),
        },
        inputs=_recorded(entry),
        tools=("numpy", "torch"),
        upstream={"samples": given.samples},
    )
    try:
        made = done(step, log)
    except proving.FailedError as failure:
        return failure.result
    compiled = SmokeCheck(name="compiled", protocol="-", outcome="passed", detail=", ".join(tools.values()))
    return SmokeResult(
        model=given.row.identifier, checks=(compiled, *(SmokeCheck(**row) for row in made.values["checks"]))
    )


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
