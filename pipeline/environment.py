"""What this machine has, found without importing or running any of it, and what to type where something is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import command, store
from pipeline.errors import PipelineError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
MIN_SHM_BYTES = 16 * 2**20  # with 8 MB a batch of 16 images of 3x224x224 failed; Docker gives 64 MB
MIN_DISK_BYTES = 2 * 2**30  # a model, its variants and their cache entries, several times over
ENGINE_TIMEOUT_S = 3.0
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 12)  # numpy < 2, which the server pins, ends there

REQUIRED = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxslim",
    "pillow",
    "protobuf",
    "psutil",
    "safetensors",
    "scikit-learn",
    "torch",
    "tritonclient",
)
OPTIONAL = ("timm", "torchvision", "transformers")
SERVER = "nvidia-pytriton"

_TRITON_OF_PYTRITON = {"0.7.0": "2.51.0"}  # what `/v2` of the server in that wheel reports
_INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor.

    Attributes:
        count: processors this process may run on.
        flags: those of its instruction sets that decide the speed of inference.
    """

    count: int
    model: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The first NVIDIA GPU; name and driver are ``unknown`` where the driver does not tell."""

    name: str
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What this machine has; a path is None where there is no such thing.

    Attributes:
        python_version: of this interpreter, ``3.11.7``.
        python_path: this interpreter.
        libpython: its shared library, which Triton's Python stub is linked to.
        tritonserver: the server's program, from nvidia-pytriton.
        tritonserver_version: of the server, ``2.51.0``; ``unknown`` for a wheel not known here.
        stub: the server's Python stub for this interpreter's version.
        stub_versions: the Python versions it has a stub for.
        distributions: installed versions of what the pipeline uses, ``absent`` where not installed.
        shm_free_bytes: free in /dev/shm, through which the server passes tensors to its stubs; None: no /dev/shm.
        disk_free_bytes: free where the work directory is, or will be.
        work_dir: as given.
    """

    python_version: str
    python_path: Path
    libpython: Path | None
    tritonserver: Path | None
    tritonserver_version: str
    stub: Path | None
    stub_versions: tuple[str, ...]
    perf_analyzer: Path | None
    distributions: Mapping[str, str]
    shm_free_bytes: int | None
    disk_free_bytes: int
    cpu: Cpu
    gpu: Gpu | None
    java: Path | None
    docker: Path | None
    work_dir: Path

    def lacks_to_build(self, distributions: Sequence[str] = ()) -> tuple[str, ...]:
        """What making the models needs and this machine does not have, each with its remedy.

        Free disk is not judged: what a build will take is not known before, and a full disk says so itself.

        Args:
            distributions: optional ones that the configuration asks for.
        """
        absent = sorted(name for name in distributions if self.distributions.get(name, "absent") == "absent")
        return (*_gaps(_build_checks(self)), *(f"{name}: not installed; pip install {name}" for name in absent))

    def lacks_to_serve(self, *, container: bool = False) -> tuple[str, ...]:
        """The same for serving them.

        Args:
            container: the server runs in a container, not from nvidia-pytriton.
        """
        if not container:
            return _gaps([_shm_check(self), *_server_checks(self)])
        return () if self.docker else (f"Docker: no client on PATH; {_DOCKER_FIX}",)


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


def probe(work_dir: Path) -> Environment:
    """Look at this machine; imports nothing heavy, runs nothing, takes well under 0.1 s.

    Args:
        work_dir: where the pipeline will write; need not exist yet.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    distributions = store.tool_versions((*REQUIRED, *OPTIONAL, SERVER))
    home = _pytriton_server()
    stubs = {path.parent.name: path for path in home.glob("python_backend_stubs/*/triton_python_backend_stub")}
    return Environment(
        python_version=platform.python_version(),
        python_path=Path(sys.executable),
        libpython=_libpython(version),
        tritonserver=_existing(home / "bin" / "tritonserver"),
        tritonserver_version=_TRITON_OF_PYTRITON.get(distributions[SERVER], "unknown"),
        stub=stubs.get(version),
        stub_versions=tuple(sorted(stubs, key=lambda name: [int(part) for part in name.split(".")])),
        perf_analyzer=_existing(Path(sysconfig.get_path("scripts")) / "perf_analyzer") or _program("perf_analyzer"),
        distributions=distributions,
        shm_free_bytes=_free_bytes(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        disk_free_bytes=_free_bytes(work_dir),
        cpu=_cpu(Path("/proc/cpuinfo")),
        gpu=_gpu(Path("/dev"), Path("/proc/driver/nvidia")),
        java=_java(),
        docker=_program("docker"),
        work_dir=work_dir,
    )


def summary(work_dir: Path) -> dict[str, Any]:
    """The environment as JSON values, for the report: what can change a result or a speed."""
    found, system = probe(work_dir), os.uname()
    return {
        "python": found.python_version,
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "cpu": {"model": found.cpu.model, "count": found.cpu.count, "flags": list(found.cpu.flags)},
        "gpu": None if found.gpu is None else {"name": found.gpu.name, "driver": found.gpu.driver},
        "tritonserver": found.tritonserver_version if found.tritonserver else None,
        "distributions": {name: text for name, text in found.distributions.items() if text != "absent"},
    }


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


def _build_checks(environment: Environment) -> list[Check]:
    major, minor = (int(part) for part in environment.python_version.split(".")[:2])
    absent = [name for name in REQUIRED if environment.distributions.get(name, "absent") == "absent"]
    python_ok = MIN_PYTHON <= (major, minor) <= MAX_PYTHON
    span = f"{'.'.join(map(str, MIN_PYTHON))} to {'.'.join(map(str, MAX_PYTHON))}"
    versions = _versions(environment, ("torch", "onnx", "onnxruntime"))
    return [
        Check(
            name="Python",
            ok=python_ok,
            found=f"{environment.python_version} at {environment.python_path}",
            fix="" if python_ok else f"make clean && make build PYTHON=python3.11  (any of {span})",
            needed_for="everything",
        ),
        Check(
            name="packages",
            ok=not absent,
            found=f"not installed: {', '.join(absent)}" if absent else versions,
            fix=f"make build  (or: pip install {' '.join(absent)})" if absent else "",
            needed_for="training, export and serving",
        ),
    ]


def _disk_check(environment: Environment) -> Check:
    free = environment.disk_free_bytes
    return Check(
        name="disk",
        ok=free >= MIN_DISK_BYTES,
        found=f"{_gib(free)} free at {environment.work_dir}",
        fix="" if free >= MIN_DISK_BYTES else "python -m pipeline cache gc  (or another --work-dir)",
        needed_for=f"the step cache and the repository; at least {_gib(MIN_DISK_BYTES)}",
    )


def _shm_check(environment: Environment) -> Check:
    free = environment.shm_free_bytes
    ok = free is not None and free >= MIN_SHM_BYTES
    return Check(
        name=str(SHARED_MEMORY),
        ok=ok,
        found="none" if free is None else f"{_gib(free)} free",
        fix="" if ok else "mount -o remount,size=1g /dev/shm  (in a container: docker run --shm-size=1g)",
        needed_for=f"tensors on their way to a model; at least {MIN_SHM_BYTES // 2**20} MiB",
    )


_DOCKER_FIX = "apt-get install docker.io  (or see docs.docker.com/engine/install)"


def _versions(environment: Environment, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {environment.distributions.get(name, 'absent')}" for name in names)


def _server_checks(environment: Environment) -> list[Check]:
    version = ".".join(environment.python_version.split(".")[:2])
    stubs = ", ".join(environment.stub_versions) or "none"
    server, stub, libpython = environment.tritonserver, environment.stub, environment.libpython
    return [
        Check(
            name="Triton server",
            ok=server is not None,
            found="none" if server is None else f"{environment.tritonserver_version} at {server}",
            fix="" if server else "pip install 'nvidia-pytriton==0.7.0'",
            needed_for="serving and smoke tests",
        ),
        Check(
            name="Python stub",
            ok=stub is not None,
            found=f"for Python {version}" if stub else f"none for Python {version}; there are stubs for {stubs}",
            fix="" if stub else f"make clean && make build PYTHON=python3.11  (any of {stubs})",
            needed_for="the server's stand-in backends",
        ),
        Check(
            name="libpython",
            ok=libpython is not None,
            found=str(libpython) if libpython else f"no libpython{version}.so.1.0",
            fix="" if libpython else f"apt-get install libpython{version}  (or a Python built with --enable-shared)",
            needed_for="the Python stub, which is linked to it",
        ),
    ]


def _cpu_check(environment: Environment) -> Check:
    cpu = environment.cpu
    found = f"{cpu.count} x {cpu.model} ({' '.join(cpu.flags) or 'no vector instructions known here'})"
    return Check(name="CPU", ok=True, found=found, fix="", needed_for="everything")


def _optional_checks(environment: Environment) -> list[Check]:
    absent = [name for name in OPTIONAL if environment.distributions.get(name, "absent") == "absent"]
    present = [name for name in OPTIONAL if name not in absent]
    gpu = environment.gpu
    return [
        Check(
            name="model libraries",
            ok=True,
            found=_versions(environment, present) + ("; " if present and absent else "") + _optional_absence(absent),
            fix=f"pip install {' '.join(absent)}" if absent else "",
            needed_for="models these libraries know by name",
        ),
        _optional("GPU", f"{gpu.name}, driver {gpu.driver}" if gpu else None, _GPU_FIX, "serving on a GPU (KIND_GPU)"),
        _optional("perf_analyzer", environment.perf_analyzer, "pip install 'tritonclient==2.51.0'", "make bench"),
        _optional("Java", environment.java, "apt-get install openjdk-17-jre-headless", "TorchServe"),
        _docker_check(environment.docker),
    ]


_GPU_FIX = "apt-get install nvidia-driver  (on a machine that has an NVIDIA GPU)"


def _optional_absence(names: Sequence[str]) -> str:
    return f"{', '.join(names)} not installed (optional)" if names else ""


def _optional(name: str, found: Path | str | None, fix: str, needed_for: str) -> Check:
    return Check(
        name=name,
        ok=True,
        found="none (optional)" if found is None else str(found),
        fix=fix if found is None else "",
        needed_for=needed_for,
    )


def _docker_check(docker: Path | None) -> Check:
    needed_for = "serve.engine: container"
    if docker is None:
        return _optional("Docker", None, _DOCKER_FIX, needed_for)
    try:
        version = command.run([str(docker), "version", "--format", "{{.Server.Version}}"], timeout_s=ENGINE_TIMEOUT_S)
    except PipelineError as error:
        found = f"{docker}, but no engine answers (optional)"
        if "did not end" in error.what:
            found = f"{docker}, but its engine does not answer within {ENGINE_TIMEOUT_S:.0f} s (optional)"
        return Check(name="Docker", ok=True, found=found, fix="systemctl start docker", needed_for=needed_for)
    return Check(name="Docker", ok=True, found=f"engine {version.strip()}", fix="", needed_for=needed_for)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _program(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _java() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    return (_existing(Path(home) / "bin" / "java") if home else None) or _program("java")


def _pytriton_server() -> Path:
    """The server's folder in the nvidia-pytriton wheel, without importing it; a path that is not there if absent."""
    spec = importlib.util.find_spec("pytriton")
    locations = (spec.submodule_search_locations if spec else None) or ["/nonexistent"]
    return Path(locations[0]) / "tritonserver"


def _libpython(version: str) -> Path | None:
    """The interpreter's own shared library first: another build may lack symbols that its modules need."""
    name = f"libpython{version}.so.1.0"
    libraries = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    own = (libraries, libraries / multiarch, Path(sys.base_prefix) / "lib")
    system = (Path("/usr/lib") / multiarch, Path("/usr/lib64"), Path("/usr/local/lib"))
    return next((folder / name for folder in (*own, *system) if (folder / name).is_file()), None)


def _free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds ``path``, or would hold it."""
    path = path.absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def _cpu(cpuinfo: Path) -> Cpu:
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return Cpu(
        count=len(os.sched_getaffinity(0)),
        model=model[1].strip() if model else platform.machine(),
        flags=tuple(flag for flag in _INTERESTING_FLAGS if flag in present),
    )


def _gpu(devices: Path, driver: Path) -> Gpu | None:
    """The GPU as the driver's files describe it (``/proc/driver/nvidia``); nvidia-smi would take a second."""
    if not any(re.fullmatch(r"nvidia\d+", item.name) for item in devices.glob("nvidia*")):
        return None
    version = _search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", driver / "version")
    information = next(iter(sorted(driver.glob("gpus/*/information"))), driver / "information")
    return Gpu(name=_search(r"Model:\s*(.+)", information), driver=version)


def _search(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(errors="replace")) if path.is_file() else None
    return match[1].strip() if match else "unknown"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
