"""What this machine has, found without importing or running any of it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.base import step
from pipeline.machine import cuda_driver

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 12)  # numpy < 2, which the server pins, ends there

MIN_JAVA = 17  # what TorchServe's frontend is compiled for (0.12.0)

REQUIRED = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "onnxslim", "pillow", "protobuf", "psutil",
    "safetensors", "scikit-learn", "torch", "tritonclient",
)  # fmt: skip
OPTIONAL = ("timm", "torchvision", "transformers")
TENSORFLOW = ("keras", "tensorflow", "tensorflow-cpu", "tf2onnx")  # two distributions of TensorFlow: either will do
SERVER = "nvidia-pytriton"
TORCHSERVE = ("pyyaml", "torch-model-archiver", "torchserve")  # its workers import yaml, and do not require it (0.12.0)

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

    @property
    def saturates_int8(self) -> bool:
        """Whether sums of 8-bit products overflow: x86 without VNNI or AMX (ONNX Runtime's quantization guide)."""
        return "avx2" in self.flags and not {"avx512_vnni", "avx_vnni", "amx_int8"}.intersection(self.flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The first NVIDIA GPU; what the driver does not tell is ``unknown``.

    Attributes:
        capability: its compute capability, ``sm_89``.
        others: those of further GPUs, each once.
    """

    name: str
    driver: str
    capability: str = "unknown"
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpp:
    """What compiles C++ programs against libtorch; None, or empty, where there is no such thing.

    Attributes:
        opencv: folder of OpenCV's headers.
        libtorch: the folder for CMAKE_PREFIX_PATH, in the installed torch.
        libtorch_cuda: the CUDA release that torch is built for; its CMake files then want CUDA's compiler, nvcc.
    """

    cmake: Path | None = None
    make: Path | None = None
    compiler: Path | None = None
    opencv: Path | None = None
    opencv_version: str = ""
    libtorch: Path | None = None
    libtorch_cuda: str = ""
    nvcc: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What this machine has; a path is None where there is no such thing.

    Attributes:
        python_version: of this interpreter, ``3.11.7``.
        libpython: its shared library, which Triton's Python stub is linked to.
        tritonserver: the server's program, from nvidia-pytriton.
        tritonserver_version: of the server, ``2.51.0``; ``unknown`` for a wheel not known here.
        stub: the server's Python stub for this interpreter's version.
        stub_versions: the Python versions it has a stub for.
        cuda_bindings: whether engines can be run through CUDA's runtime: the package cuda-bindings, of the extra `gpu`.
        distributions: installed versions of what the pipeline uses, ``absent`` where not installed.
        shm_free_bytes: free in /dev/shm, through which the server passes tensors to its stubs; None: no /dev/shm.
        disk_free_bytes: free where the work directory is, or will be.
        java_version: as it calls itself, ``17.0.15`` or ``1.8.0_392``; ``unknown`` where its files do not tell.
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
    java_version: str = "unknown"
    docker: Path | None
    work_dir: Path
    cpp: Cpp = Cpp()
    cuda_bindings: bool = False

    @property
    def java_too_old(self) -> bool:
        """Whether the Java there is, is known to be one that TorchServe does not run on."""
        major = re.match(r"(?:1\.)?(\d+)", self.java_version)  # up to Java 8 it came second
        return major is not None and int(major[1]) < MIN_JAVA


def probe(work_dir: Path) -> Environment:
    """Look at this machine, and the disk of ``work_dir``, which need not exist yet.

    Imports nothing heavy, runs nothing, takes well under 0.1 s.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    distributions = step.tool_versions((*REQUIRED, *OPTIONAL, *TENSORFLOW, *TORCHSERVE, SERVER))
    home = _pytriton_server()
    java = _java()
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
        java=java,
        java_version=_java_version(java) if java else "unknown",
        docker=_program("docker"),
        work_dir=work_dir,
        cpp=_cpp(),
        cuda_bindings=_cuda_bindings(),
    )


def summary(work_dir: Path) -> dict[str, Any]:
    """The environment as JSON values, for the report: what can change a result or a speed."""
    found, system = probe(work_dir), os.uname()
    return {
        "python": found.python_version,
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "cpu": {"model": found.cpu.model, "count": found.cpu.count, "flags": list(found.cpu.flags)},
        "gpu": None if found.gpu is None else asdict(found.gpu),
        "tritonserver": found.tritonserver_version if found.tritonserver else None,
        "distributions": {name: text for name, text in found.distributions.items() if text != "absent"},
    }


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _program(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _java() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    return (_existing(Path(home) / "bin" / "java") if home else None) or _program("java")


def _java_version(java: Path) -> str:
    """As its ``release`` file has it, since to ask Java itself takes longer than all else here."""
    home = java.resolve().parent.parent
    found = (_search(r'^JAVA_VERSION="([^"]+)"', place / "release") for place in (home, home.parent))  # 8 has jre/bin
    return next((version for version in found if version != "unknown"), "unknown")


def _cpp() -> Cpp:
    opencv = next((place for place in _include_folders() if (place / "opencv2" / "imgcodecs.hpp").is_file()), None)
    spec = importlib.util.find_spec("torch")
    torch = Path(spec.origin).parent if spec and spec.origin else None
    compilers = (_program(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)
    return Cpp(
        cmake=_program("cmake"),
        make=_program("make"),
        compiler=next((found for found in compilers if found), None),
        opencv=opencv,
        opencv_version=_opencv_version(opencv) if opencv else "",
        libtorch=torch / "share" / "cmake" if torch else None,
        libtorch_cuda=_torch_cuda(torch / "version.py") if torch else "",
        nvcc=_program("nvcc"),
    )


def _include_folders() -> list[Path]:
    """Where OpenCV's headers may be: as CMake is told by OpenCV_DIR and CMAKE_PREFIX_PATH, and where systems put them.

    OpenCV_DIR is the folder of OpenCV's CMake files, three below its prefix.
    """
    told = [Path(text) for text in os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep) if text]
    if found := os.environ.get("OpenCV_DIR"):  # noqa: SIM112 - CMake's spelling
        told += Path(found).parents[2:3]
    prefixes = (*told, Path("/usr/local"), Path("/usr"))
    return [folder for prefix in prefixes for folder in (prefix / "include" / "opencv4", prefix / "include")]


def _opencv_version(include: Path) -> str:
    header = include / "opencv2" / "core" / "version.hpp"
    return ".".join(_search(rf"#define CV_VERSION_{part}\s+(\d+)", header) for part in ("MAJOR", "MINOR", "REVISION"))


def _torch_cuda(version_file: Path) -> str:
    found = _search(r"^cuda\b[^=]*= *'([^']+)'", version_file)
    return "" if found == "unknown" else found


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
    """The GPU as CUDA's driver tells it, else as the driver's files do (``/proc/driver/nvidia``)."""
    if not any(re.fullmatch(r"nvidia\d+", item.name) for item in devices.glob("nvidia*")):
        return None
    version = _search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", driver / "version")
    try:
        found = cuda_driver.devices()
    except cuda_driver.DriverError:
        information = next(iter(sorted(driver.glob("gpus/*/information"))), driver / "information")
        return Gpu(name=_search(r"Model:\s*(.+)", information), driver=version)
    first, *others = dict.fromkeys(device.capability for device in found)
    return Gpu(name=found[0].name, driver=version, capability=first, others=tuple(others))


def _cuda_bindings() -> bool:
    """``cuda`` is a namespace, so looking runs nothing."""
    return all(importlib.util.find_spec(name) is not None for name in ("cuda", "cuda.bindings"))


def _search(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE) if path.is_file() else None
    return match[1].strip() if match else "unknown"
