"""C++ programs (`format: libtorch`): the source folder beside Triton's repository, and its proof: compiled and run.

``<repository>.libtorch/<name>_<key>/<N>/`` holds the TorchScript file, C++ source, CMakeLists.txt and a README.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base import command, files
from pipeline.base.errors import StageError
from pipeline.base.store import Step, tool_versions
from pipeline.base.values import Artifact, RepositoryEntry, SmokeCheck, SmokeResult
from pipeline.build.emission import manifest_of
from pipeline.build.run import Run
from pipeline.machine import doctor, environment
from pipeline.machine.environment import Environment
from pipeline.plan import Variant
from pipeline.repository.manifest import manifest_check, read_manifest
from pipeline.repository.versions import Version
from pipeline.servers.libtorch import program

_COMPILE_TIMEOUT_S = 1800.0
_TAIL_CHARACTERS = 1500
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
    tools = _tools(here)
    sizes = (1, min(variant.max_batch_size, _MOST_BATCHED)) if variant.max_batch_size > 1 else (1,)
    step = Step(
        name=f"program[{variant.identifier}]",
        code=(
            "build/libtorch.py",
            "servers/libtorch",
            "proof/comparison.py",
            "images/postprocessing.py",
            "data/samples.py",
        ),
        parameters={"tools": tools, "tolerance": asdict(variant.tolerance), "batch_sizes": sizes},
        inputs=_recorded(entry),
        tools=("numpy", "torch"),
        upstream={"samples": run.plan.samples},
    )
    with run.stage(step.name, variant.identifier) as stage:

        def produce(kept: Path) -> Mapping[str, Any]:
            stage.progress("compiling", None)
            result = _compiled_and_run(run, variant, entry, here, sizes, kept)
            run.judge(variant, result, log=_log(run, variant))  # a failure is never stored: the next build tries again
            return {"checks": [asdict(check) for check in result.checks]}

        values = run.step(step, stage, produce).values
        compiled = SmokeCheck(name="compiled", protocol="-", outcome="passed", detail=", ".join(tools.values()))
        checks = (intact, compiled, *(SmokeCheck(**row) for row in values["checks"]))
        stage.result = f"{len(checks)} checks"
    return SmokeResult(model=variant.identifier, checks=checks)


def _recorded(entry: RepositoryEntry) -> dict[str, str]:
    """Digests of the version's own files, which are those of its manifest: that has been checked."""
    manifest = read_manifest(entry.root, entry.model_name, entry.version)
    assert manifest is not None
    recorded: dict[str, str] = manifest["files"]
    return recorded


def _log(run: Run, variant: Variant) -> Path:
    return run.directory / f"{variant.identifier}.program.log"


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


def _compiled_and_run(
    run: Run, variant: Variant, entry: RepositoryEntry, here: Environment, sizes: Sequence[int], kept: Path
) -> SmokeResult:
    """Compile and run; the program that passed is kept in the step store, by its name."""
    from pipeline.servers.libtorch import checks as proof

    folder = run.directory / f"{variant.identifier}.program"
    build = compile_folder(entry.version_dir, folder / "build", here, log_path=_log(run, variant))
    output, answers = run.scores
    built = proof.Program(
        executable=build / variant.identifier,
        model=entry.version_dir / program.MODEL_FILE,
        signature=run.signature,
        output=output,
        answers=answers,
        tolerance=variant.tolerance,
        log_path=_log(run, variant),
    )
    result = SmokeResult(model=variant.identifier, checks=proof.check(built, run.golden, sizes, folder))
    if result.passed:
        shutil.copy2(built.executable, kept)
        files.remove_tree(folder)
    return result


def compile_folder(source: Path, build: Path, here: Environment, *, log_path: Path) -> Path:
    """Configure and build a program's folder against the installed libtorch, as its README says.

    Args:
        source: the folder; nothing is written to it.
        build: where CMake works; made here.
        here: with all that compiling needs.
        log_path: what CMake and the compiler print is added to it.

    Returns:
        The folder of the executable.

    Raises:
        StageError: it does not compile.
    """
    build.mkdir(parents=True)
    assert here.cpp.libtorch is not None
    configure = ["-S", str(source), "-B", str(build), f"-DCMAKE_PREFIX_PATH={here.cpp.libtorch}"]
    cores = str(len(os.sched_getaffinity(0)))
    for arguments in ([*configure, f"-DCMAKE_CXX_COMPILER={here.cpp.compiler}"], ["--build", str(build), "-j", cores]):
        _logged([str(here.cpp.cmake), *arguments], log_path)
    return build


def _logged(argv: Sequence[str], log_path: Path) -> None:
    child = command.start(argv, log_path=log_path)
    try:
        status = child.wait(_COMPILE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        what = f"{Path(argv[0]).name}: not done after {_COMPILE_TIMEOUT_S:.0f} s"
        raise StageError(what, log=str(log_path)) from error
    finally:
        command.stop(child, grace_s=1.0)
    if status != 0:
        raise StageError(
            "the C++ program does not compile",
            found=log_path.read_text(errors="replace")[-_TAIL_CHARACTERS:],
            hint="see the log; compile it by hand as its README says",
            log=str(log_path),
        )
