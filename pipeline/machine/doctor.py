"""What this machine lacks, each gap with what to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import command
from pipeline.base.errors import PipelineError
from pipeline.machine import remedies, tensorrt_flavours
from pipeline.machine.environment import (
    MAX_PYTHON,
    MIN_JAVA,
    MIN_PYTHON,
    OPTIONAL,
    REQUIRED,
    SHARED_MEMORY,
    TENSORFLOW,
    TORCHSERVE,
    Environment,
    Gpu,
)
from pipeline.machine.tensorrt_flavours import Flavour, FlavourName

MIN_SHM_BYTES = 16 * 2**20  # with 8 MB a batch of 16 images of 3x224x224 failed; Docker gives 64 MB
MIN_DISK_BYTES = 2 * 2**30  # a model, its variants and their cache entries, several times over
ENGINE_TIMEOUT_S = 3.0
JAVA_FIX = "apt-get install openjdk-17-jre-headless"
TORCHSERVE_FIX = "pip install 'model-repository-pipeline[torchserve]'"
GPU_EXTRA_FIX = "pip install 'model-repository-pipeline[gpu]'"
_GPU_FIX = "apt-get install nvidia-driver  (on a machine that has an NVIDIA GPU)"
_LIBCUDA_FIX = "apt-get install libcuda1  (in a container: docker run --gpus=all)"
_DOCKER_FIX = "apt-get install docker.io  (or see docs.docker.com/engine/install)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of ``doctor``.

    Attributes:
        ok: False only for a gap that blocks; what is optional and absent says so in ``found``.
        found: what there is.
        fix: one line to type where there is a gap, else empty.
        needed_for: what does not work without it.
    """

    name: str
    ok: bool
    found: str
    fix: str
    needed_for: str


def lacks_to_build(environment: Environment, distributions: Sequence[str] = ()) -> tuple[str, ...]:
    """What making the models needs and this machine does not have, each with its remedy.

    Free disk is not judged: what a build will take is not known before, and a full disk says so itself. The optional
    ``distributions`` are those that the configuration asks for.
    """
    absent = sorted(_absent(environment, distributions))
    return (*_gaps(_build_checks(environment)), *(f"{name}: not installed; pip install {name}" for name in absent))


def lacks_tensorflow(environment: Environment) -> tuple[str, ...]:
    """What Keras models and SavedModels need and this machine does not have, each with its remedy."""
    absent = _absent(environment, ("keras", "tf2onnx"))
    absent += ["tensorflow-cpu"] if len(_absent(environment, ("tensorflow", "tensorflow-cpu"))) == 2 else []
    return (f"{', '.join(absent)}: not installed; {remedies.TENSORFLOW}",) if absent else ()


def lacks_to_build_engines(environment: Environment, flavour: Flavour, gpus: Sequence[str] = ()) -> tuple[str, ...]:
    """What building engines of a flavour needs and this machine does not have, each with its remedy.

    They are for the compute capabilities ``gpus``, or for that of this machine's GPU.
    """
    found = []
    if tensorrt_flavours.installed(flavour.name) is None:
        found.append(f"{flavour.name}: not installed; {flavour.install}")
    if flavour.needs_gpu and (lack := _lacking_gpu(environment.gpu, flavour.name, gpus)):
        found.append(f"GPU: {lack}")
    return tuple(found)


def _lacking_gpu(gpu: Gpu | None, flavour: str, wanted: Sequence[str]) -> str:
    if gpu is None:
        return f"none, and {flavour} builds engines on the GPU they are for; {_GPU_FIX}"
    if gpu.capability == "unknown":
        return f"{gpu.name}, and its driver's library libcuda.so.1 does not answer; {_LIBCUDA_FIX}"
    here = (gpu.capability, *gpu.others)
    absent = ", ".join(name for name in wanted if name not in here)
    if not absent:
        return ""
    return (
        f"{', '.join(here)}, and {flavour} builds engines on the GPU they are for ({absent}); build on a machine that "
        "has it, or name this machine's under `engine.gpus`"
    )


def lacks_to_run_engines(environment: Environment) -> str:
    """What running any engine needs and this machine does not have, with its remedy; empty when nothing is lacking."""
    if environment.gpu is None:
        return "this machine has no GPU"
    return "" if environment.cuda_bindings else f"cuda-bindings is not installed: {GPU_EXTRA_FIX}"


def lacks_to_compile(environment: Environment) -> tuple[str, ...]:
    """What compiling a C++ program needs and this machine does not have, each with its remedy."""
    cpp = environment.cpp
    parts = (
        ("CMake", cpp.cmake, "cmake"),
        ("make", cpp.make, "make"),
        ("C++ compiler", cpp.compiler, "g++"),
        ("OpenCV", cpp.opencv, "libopencv-imgcodecs-dev"),
    )
    found = [f"no {name} (apt-get install {package})" for name, path, package in parts if path is None]
    if cpp.libtorch is None:
        found.append("no libtorch (pip install torch)")
    if cpp.libtorch_cuda and cpp.nvcc is None:
        found.append(
            f"torch is built for CUDA {cpp.libtorch_cuda}, and its CMake files need nvcc (install CUDA's toolkit)"
        )
    return tuple(found)


def lacks_to_serve(environment: Environment, *, container: bool = False) -> tuple[str, ...]:
    """What serving, in a container or without, needs and this machine does not have, each with its remedy."""
    if not container:
        return _gaps([_shm_check(environment), *_server_checks(environment)])
    return () if environment.docker else (f"Docker: no client on PATH; {_DOCKER_FIX}",)


def lacks_to_archive(environment: Environment) -> tuple[str, ...]:
    """What making an archive for TorchServe needs and this machine does not have, each with its remedy."""
    absent = ", ".join(_absent(environment, TORCHSERVE))
    return (f"TorchServe: {absent} not installed; {TORCHSERVE_FIX}",) if absent else ()


def lacks_to_serve_torchserve(environment: Environment) -> tuple[str, ...]:
    """What running TorchServe needs and this machine does not have, each with its remedy."""
    java = _java(environment)
    gap = () if java and not environment.java_too_old else (f"Java: {java or 'none'}; {JAVA_FIX}",)
    return (*lacks_to_archive(environment), *gap)


def checks(environment: Environment) -> list[Check]:
    """Every row of ``doctor``; asks the Docker engine whether it is there, which may take 3 s."""
    return [
        *_build_checks(environment),
        _disk_check(environment),
        _shm_check(environment),
        *_server_checks(environment),
        _cpu_check(environment),
        *_optional_checks(environment),
    ]


def _gaps(rows: Sequence[Check]) -> tuple[str, ...]:
    return tuple(f"{row.name}: {row.found}; {row.fix}" for row in rows if not row.ok)


def _row(name: str, found: str, fix: str, needed_for: str, *, lacking: bool = False, blocks: bool = False) -> Check:
    """A row; ``fix`` is shown where something is lacking, which is an error where it blocks."""
    ok = not (lacking and blocks)
    return Check(name=name, ok=ok, found=found, fix=fix if lacking else "", needed_for=needed_for)


def _build_checks(environment: Environment) -> list[Check]:
    major, minor = (int(part) for part in environment.python_version.split(".")[:2])
    absent = _absent(environment, REQUIRED)
    span = f"{'.'.join(map(str, MIN_PYTHON))} to {'.'.join(map(str, MAX_PYTHON))}"
    return [
        _row(
            "Python",
            f"{environment.python_version} at {environment.python_path}",
            f"make clean && make build PYTHON=python3.11  (any of {span})",
            "everything",
            lacking=not MIN_PYTHON <= (major, minor) <= MAX_PYTHON,
            blocks=True,
        ),
        _row(
            "packages",
            f"not installed: {', '.join(absent)}"
            if absent
            else _versions(environment, ("torch", "onnx", "onnxruntime")),
            f"make build  (or: pip install {' '.join(absent)})",
            "training, export and serving",
            lacking=bool(absent),
            blocks=True,
        ),
    ]


def _disk_check(environment: Environment) -> Check:
    free = environment.disk_free_bytes
    return _row(
        "disk",
        f"{_gib(free)} free at {environment.work_dir}",
        "python -m pipeline cache gc  (or another --work-dir)",
        f"the step cache and the repository; at least {_gib(MIN_DISK_BYTES)}",
        lacking=free < MIN_DISK_BYTES,
        blocks=True,
    )


def _shm_check(environment: Environment) -> Check:
    free = environment.shm_free_bytes
    return _row(
        str(SHARED_MEMORY),
        "none" if free is None else f"{_gib(free)} free",
        "mount -o remount,size=1g /dev/shm  (in a container: docker run --shm-size=1g)",
        f"tensors on their way to a model; at least {MIN_SHM_BYTES // 2**20} MiB",
        lacking=free is None or free < MIN_SHM_BYTES,
        blocks=True,
    )


def _absent(environment: Environment, names: Sequence[str]) -> list[str]:
    return [name for name in names if environment.distributions.get(name, "absent") == "absent"]


def _versions(environment: Environment, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {environment.distributions.get(name, 'absent')}" for name in names)


def _server_checks(environment: Environment) -> list[Check]:
    version = ".".join(environment.python_version.split(".")[:2])
    stubs = ", ".join(environment.stub_versions) or "none"
    server, stub, libpython = environment.tritonserver, environment.stub, environment.libpython
    return [
        _row(
            "Triton server",
            f"{environment.tritonserver_version} at {server}" if server else "none",
            "pip install 'nvidia-pytriton==0.7.0'",
            "serving and smoke tests",
            lacking=server is None,
            blocks=True,
        ),
        _row(
            "Python stub",
            f"for Python {version}" if stub else f"none for Python {version}; there are stubs for {stubs}",
            f"make clean && make build PYTHON=python3.11  (any of {stubs})",
            "the server's stand-in backends",
            lacking=stub is None,
            blocks=True,
        ),
        _row(
            "libpython",
            str(libpython or f"no libpython{version}.so.1.0"),
            f"apt-get install libpython{version}  (or a Python built with --enable-shared)",
            "the Python stub, which is linked to it",
            lacking=libpython is None,
            blocks=True,
        ),
    ]


def _cpu_check(environment: Environment) -> Check:
    cpu = environment.cpu
    found = f"{cpu.count} x {cpu.model} ({' '.join(cpu.flags) or 'no vector instructions known here'})"
    return _row("CPU", found, "", "everything")


def _optional_checks(environment: Environment) -> list[Check]:
    gpu, bindings = environment.gpu, "installed" if environment.cuda_bindings else None
    perf_analyzer = "pip install 'tritonclient==2.51.0'"
    return [
        _libraries_check(environment),
        _engines_check(),
        _tensorflow_check(environment),
        _optional("GPU", f"{gpu.name}, driver {gpu.driver}" if gpu else None, _GPU_FIX, "KIND_GPU, TensorRT's engines"),
        _optional("cuda-bindings", bindings, GPU_EXTRA_FIX, "running engines on a GPU"),
        _optional("perf_analyzer", environment.perf_analyzer, perf_analyzer, "make bench"),
        _cpp_check(environment),
        _java_check(environment),
        _torchserve_check(environment),
        _docker_check(environment.docker),
    ]


def _libraries_check(environment: Environment) -> Check:
    absent = _absent(environment, OPTIONAL)
    present = _versions(environment, [name for name in OPTIONAL if name not in absent])
    lacking = f"{', '.join(absent)} not installed (optional)" if absent else ""
    found = "; ".join(filter(None, (present, lacking)))
    needed_for = "models these libraries know by name"
    return _row("model libraries", found, f"pip install {' '.join(absent)}", needed_for, lacking=bool(absent))


def _java(environment: Environment) -> str:
    """The Java there is, and what is wrong with it; empty where there is none."""
    if environment.java is None:
        return ""
    old = f", older than {MIN_JAVA}" if environment.java_too_old else ""
    version = "" if environment.java_version == "unknown" else f"{environment.java_version} at "
    return f"{version}{environment.java}{old}"


def _java_check(environment: Environment) -> Check:
    found = _java(environment)
    lacking = not found or environment.java_too_old
    text = f"{found or 'none'} (optional)" if lacking else found
    return _row("Java", text, JAVA_FIX, f"TorchServe, which runs on Java {MIN_JAVA} or later", lacking=lacking)


def _torchserve_check(environment: Environment) -> Check:
    absent = ", ".join(_absent(environment, TORCHSERVE))
    found = f"{absent} not installed (optional)" if absent else _versions(environment, TORCHSERVE)
    return _row("TorchServe", found, TORCHSERVE_FIX, "`torchserve:` in a configuration", lacking=bool(absent))


def _cpp_check(environment: Environment) -> Check:
    lacking, cpp = lacks_to_compile(environment), environment.cpp
    found = f"{cpp.compiler}, {cpp.cmake}, OpenCV {cpp.opencv_version}"
    found = f"{'; '.join(lacking)} (optional)" if lacking else found
    fix = "apt-get install g++ make cmake libopencv-imgcodecs-dev"
    return _row("C++", found, fix, "the proof of format: libtorch", lacking=bool(lacking))


def _engines_check() -> Check:
    names: tuple[FlavourName, ...] = ("tensorrt", "tensorrt_rtx")
    found = {name: tensorrt_flavours.installed(name) for name in names}
    present = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    fix = tensorrt_flavours.flavour("tensorrt_rtx").install
    return _optional(
        "TensorRT", present or None, fix, "format: tensorrt; tensorrt_rtx builds engines without a GPU too"
    )


def _tensorflow_check(environment: Environment) -> Check:
    absent = _absent(environment, TENSORFLOW)
    found = _versions(environment, [name for name in TENSORFLOW if name not in absent]) or "none (optional)"
    lacking = bool(lacks_tensorflow(environment))
    return _row("TensorFlow", found, remedies.TENSORFLOW, "Keras models and SavedModels; TF-Serving", lacking=lacking)


def _optional(name: str, found: Path | str | None, fix: str, needed_for: str) -> Check:
    return _row(name, str(found or "none (optional)"), fix, needed_for, lacking=found is None)


def _docker_check(docker: Path | None) -> Check:
    needed_for = "serve.engine: container"
    if docker is None:
        return _optional("Docker", None, _DOCKER_FIX, needed_for)
    try:
        version = command.run([str(docker), "version", "--format", "{{.Server.Version}}"], timeout_s=ENGINE_TIMEOUT_S)
    except PipelineError as error:
        why = "but no engine answers"
        if "did not end" in error.what:
            why = f"but its engine does not answer within {ENGINE_TIMEOUT_S:.0f} s"
        return _row("Docker", f"{docker}, {why} (optional)", "systemctl start docker", needed_for, lacking=True)
    return _row("Docker", f"engine {version.strip()}", "", needed_for)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
