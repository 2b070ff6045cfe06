"""C++ programs (`format: libtorch`): the source folder beside Triton's repository, and its proof: compiled and run.

``<repository>.libtorch/<name>_<key>/<N>/`` holds the TorchScript file, C++ source, CMakeLists.txt and a README.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline.base import command, signatures
from pipeline.base.step import Step, tool_versions
from pipeline.base.values import Artifact, RepositoryEntry, SmokeCheck, SmokeResult
from pipeline.build.emission import manifest_of
from pipeline.build.run import Run
from pipeline.machine import doctor, environment
from pipeline.machine.environment import Environment
from pipeline.plan import Variant
from pipeline.repository.manifest import manifest_check, read_manifest
from pipeline.repository.versions import Version
from pipeline.servers.libtorch import program, proving

_MOST_BATCHED = 32  # a batch of the proof; the model's limit may be far above what a quick proof needs


def emit(run: Run) -> None:
    """Put the folder of every program whose model was made into the candidate; a failure is kept to its row."""
    for variant in programs(run):
        artifact = run.results[variant.key].artifact
        if artifact is not None and not run.results[variant.key].error:
            with run.guarded(variant, "build"), tempfile.TemporaryDirectory() as folder:
                _emit(run, variant, artifact, Path(folder))


def _emit(run: Run, variant: Variant, artifact: Artifact, folder: Path) -> None:
    with run.stage(f"candidate[{variant.identifier}]", variant.identifier) as stage:
        written: dict[str, Path] = {}
        for name, content in _sources(run, variant).items():
            written[name] = folder / name
            written[name].write_bytes(content)
        version = Version(
            model_name=variant.identifier,
            file_name=program.MODEL_FILE,
            artifact=artifact.path,
            beside=written,
            model_files={},
            golden=run.golden_path,
            manifest=manifest_of(run, variant, artifact),
        )
        entry = run.emit(variant, version, stage)
    run.update(variant, entry=entry, cached=run.results[variant.key].cached and not entry.created)


def _sources(run: Run, variant: Variant) -> Mapping[str, bytes]:
    output, answers = run.scores
    torch_version = tool_versions(("torch",))["torch"].partition("+")[0]
    return program.sources(variant.identifier, run.signature, output, answers, torch_version=torch_version)


def programs(run: Run) -> list[Variant]:
    """The variants that are programs."""
    return [variant for variant in run.plan.variants if variant.format == "libtorch"]


# ---- the proof ----------------------------------------------------------------------------------------------------


def prove(run: Run) -> None:
    """Compile every emitted program and run it on the golden images; where that cannot be done, say why.

    The proof is a cached step: the same sources, model, samples and tools are not compiled again.
    """
    for variant in programs(run):
        entry = run.results[variant.key].entry
        if entry is None or run.results[variant.key].error:
            continue
        run.update(variant, unmeasured="it is a program, which prints its own times")
        with run.guarded(variant, "smoke"):
            intact = manifest_check(entry)
            if intact.outcome == "failed":
                run.judge(variant, SmokeResult(model=variant.identifier, checks=(intact,)))
            here = environment.probe(run.plan.work_dir)
            if lacking := doctor.lacks_to_compile(here):
                run.note(variant, f"emitted, not compiled here: {'; '.join(lacking)}")
            elif not all(sample.image for sample in run.golden.samples):
                run.note(variant, "emitted, not compiled here: the golden samples are no image files")
            else:
                run.judge(variant, _proof(run, variant, entry, here, intact))
                run.prove(entry, "served")


def _proof(run: Run, variant: Variant, entry: RepositoryEntry, here: Environment, intact: SmokeCheck) -> SmokeResult:
    log, (output, answers) = run.directory / f"{variant.identifier}.program.log", run.scores
    tools = _tools(here)
    step = Step(
        name=f"program[{variant.identifier}]",
        function="pipeline.servers.libtorch.proving:prove",
        arguments={
            "program": variant.identifier,
            "signature": signatures.to_json(run.signature),
            "output": output,
            "answers": answers.to_json(),
            "tolerance": asdict(variant.tolerance),
            "batch_sizes": sorted({1, min(max(variant.max_batch_size, 1), _MOST_BATCHED)}),
            "tools": tools,
        },
        unkeyed={
            "source": str(entry.version_dir),
            "work": str(run.directory / f"{variant.identifier}.program"),
            **proving.paths(here.cpp),
        },
        inputs=_recorded(entry),
        tools=("numpy", "torch"),
        upstream={"samples": run.plan.samples},
    )
    with run.stage(step.name, variant.identifier) as stage:
        try:
            made = run.step(step, stage, log)
        except proving.FailedError as failure:
            run.judge(variant, failure.result, log=log)
            raise
        compiled = SmokeCheck(name="compiled", protocol="-", outcome="passed", detail=", ".join(tools.values()))
        checks = (intact, compiled, *(SmokeCheck(**row) for row in made.values["checks"]))
        stage.result = f"{len(checks)} checks"
    return SmokeResult(model=variant.identifier, checks=checks)


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
