"""The step that compiles a program's folder and runs it on the golden images; the program that passed is kept."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.base import command, files, signatures
from pipeline.base.errors import SmokeError, StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import Progress, SmokeResult, Tolerance
from pipeline.data import samples
from pipeline.images.postprocessing import Postprocessing
from pipeline.machine import capacity
from pipeline.machine.environment import Cpp
from pipeline.servers.libtorch import checks, program

_COMPILE_TIMEOUT_S = 1800.0
_TAIL_CHARACTERS = 1500


class FailedError(SmokeError):
    """The program does not answer what the model answers.

    Attributes:
        result: all checks.
    """

    def __init__(self, what: str, result: SmokeResult) -> None:
        super().__init__(what)
        self.result = result


def prove(task: Task, progress: Progress) -> Outcome:
    """Compile and run; upstream ``samples``, which are image files.

    Arguments: ``program`` (its name), ``signature``, ``output``, ``answers`` (a ``Postprocessing``), ``tolerance``,
    ``batch_sizes``, ``tools`` (versions of what compiles it, in words). Unkeyed: ``source`` (the folder), ``work`` (an
    absent one), ``cmake``, ``compiler``, ``libtorch``.

    Returns:
        The program, and the value ``checks``.

    Raises:
        FailedError: a check failed; so nothing is stored, and the next build tries again.
        StageError: it does not compile, or took too long.
    """
    given = task.arguments
    source, work = Path(given["source"]), Path(given["work"])
    progress("compiling", None)
    build = compile_folder(source, work / "build", given, log_path=task.log_path)
    built = checks.Program(
        executable=build / given["program"],
        model=source / program.MODEL_FILE,
        signature=signatures.from_json(given["signature"]),
        output=given["output"],
        answers=Postprocessing.from_json(given["answers"]),
        tolerance=Tolerance(**given["tolerance"]),
        log_path=task.log_path,
    )
    found = checks.check(built, samples.golden(task), given["batch_sizes"], work)
    result = SmokeResult(model=given["program"], checks=found)
    if not result.passed:
        raise FailedError(f"{given['program']}: {len(result.failed)} of {len(found)} checks failed", result)
    shutil.copy2(built.executable, task.out_dir)
    files.remove_tree(work)
    return Outcome(file=given["program"], values={"checks": [asdict(check) for check in found]})


def paths(cpp: Cpp) -> dict[str, str]:
    """What ``compile_folder`` needs of a machine that has it all."""
    return {"cmake": str(cpp.cmake), "compiler": str(cpp.compiler), "libtorch": str(cpp.libtorch)}


def compile_folder(source: Path, build: Path, tools: Mapping[str, str], *, log_path: Path) -> Path:
    """Configure and build a program's folder against the installed libtorch, as its README says.

    Args:
        source: the folder; nothing is written to it.
        build: where CMake works; made here.
        tools: see ``paths``.
        log_path: what CMake and the compiler print is added to it.

    Returns:
        The folder of the executable.

    Raises:
        StageError: it does not compile.
    """
    build.mkdir(parents=True)
    configure = ["-S", str(source), "-B", str(build), f"-DCMAKE_PREFIX_PATH={tools['libtorch']}"]
    together = ["--build", str(build), "-j", str(capacity.cores())]
    for arguments in ([*configure, f"-DCMAKE_CXX_COMPILER={tools['compiler']}"], together):
        _logged([tools["cmake"], *arguments], log_path)
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
