"""What this machine lacks, and what to type for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base import command
from pipeline.base.errors import MissingError, StageError
from pipeline.machine import doctor, environment, tensorrt_flavours
from pipeline.machine.doctor import Check
from pipeline.machine.environment import Cpp, Cpu, Environment, Gpu

_NAMES = (
    *environment.REQUIRED,
    *environment.OPTIONAL,
    *environment.TENSORFLOW,
    *environment.TORCHSERVE,
    environment.SERVER,
)
WHOLE = Environment(
    python_version="3.11.7",
    python_path=Path("/v/bin/python"),
    libpython=Path("/lib/libpython3.11.so.1.0"),
    tritonserver=Path("/t/bin/tritonserver"),
    tritonserver_version="2.51.0",
    stub=Path("/t/stub"),
    stub_versions=("3.10", "3.11"),
    perf_analyzer=Path("/v/bin/perf_analyzer"),
    distributions=dict.fromkeys(_NAMES, "1.0"),
    shm_free_bytes=2**30,
    disk_free_bytes=2**40,
    cpu=Cpu(count=2, model="X", flags=("avx2",)),
    gpu=None,
    java=None,
    docker=None,
    work_dir=Path("/w"),
)


def _rows(found: Environment) -> dict[str, Check]:
    return {row.name: row for row in doctor.checks(found)}


def test_a_whole_machine_has_no_gap_that_blocks() -> None:
    rows = _rows(WHOLE)
    assert all(row.ok for row in rows.values())
    for name in ("GPU", "Java", "Docker"):
        assert rows[name].found == "none (optional)"
        assert rows[name].fix
    assert rows["CPU"].found == "2 x X (avx2)"
    assert doctor.lacks_to_build(WHOLE) == doctor.lacks_to_serve(WHOLE) == ()


@pytest.mark.parametrize(
    ("gap", "row", "found", "fix"),
    [
        ({"python_version": "3.9.1"}, "Python", "3.9.1 at /v/bin/python", "make clean && make build PYTHON=python3.11"),
        (
            {"distributions": {**WHOLE.distributions, "torch": "absent"}},
            "packages",
            "not installed: torch",
            "make build",
        ),
        ({"tritonserver": None}, "Triton server", "none", "pip install 'nvidia-pytriton==0.7.0'"),
        ({"stub": None}, "Python stub", "none for Python 3.11; there are stubs for 3.10, 3.11", "make build PYTHON="),
        ({"libpython": None}, "libpython", "no libpython3.11.so.1.0", "apt-get install libpython3.11"),
        ({"shm_free_bytes": 2**20}, "/dev/shm", "0.0 GiB free", "mount -o remount,size=1g /dev/shm"),
        ({"shm_free_bytes": None}, "/dev/shm", "none", "--shm-size=1g"),
        ({"disk_free_bytes": 2**30}, "disk", "1.0 GiB free at /w", "python -m pipeline cache gc"),
    ],
)
def test_a_gap_that_blocks_says_what_to_type(gap: dict[str, object], row: str, found: str, fix: str) -> None:
    lacking = replace(WHOLE, **gap)  # type: ignore[arg-type]
    check = _rows(lacking)[row]
    assert (check.ok, check.found) == (False, found)
    assert fix in check.fix
    assert "\n" not in check.fix
    told = () if row == "disk" else (f"{row}: {found}; {check.fix}",)  # a disk that is too full says so itself
    assert doctor.lacks_to_build(lacking) + doctor.lacks_to_serve(lacking) == told
    assert all(other.ok for name, other in _rows(lacking).items() if name != row)


def test_lacks_knows_what_a_configuration_asks_for() -> None:
    lacking = replace(WHOLE, distributions={**WHOLE.distributions, "timm": "absent"})
    assert doctor.lacks_to_build(lacking) == ()
    assert doctor.lacks_to_build(lacking, ("timm", "torchvision")) == ("timm: not installed; pip install timm",)
    assert _rows(lacking)["model libraries"].found == "torchvision 1.0, transformers 1.0; timm not installed (optional)"
    assert _rows(lacking)["model libraries"].fix == "pip install timm"


def test_a_container_needs_docker_and_no_embedded_server() -> None:
    lacking = replace(WHOLE, tritonserver=None, stub=None, libpython=None)
    (text,) = doctor.lacks_to_serve(lacking, container=True)
    assert text.startswith("Docker: no client on PATH")
    assert doctor.lacks_to_serve(replace(lacking, docker=Path("/usr/bin/docker")), container=True) == ()


@pytest.mark.parametrize(
    ("answer", "found", "fix"),
    [
        ("27.1.0\n", "engine 27.1.0", ""),
        (StageError("docker exited with 1"), "/d, but no engine answers (optional)", "systemctl start docker"),
        (MissingError("cannot run docker"), "/d, but no engine answers (optional)", "systemctl start docker"),
        (StageError("docker did not end within 3 s"), "/d, but its engine does not answer within 3 s (optional)",
         "systemctl start docker"),
    ],
)  # fmt: skip
def test_docker_is_asked_only_by_checks(
    monkeypatch: pytest.MonkeyPatch, answer: str | Exception, found: str, fix: str
) -> None:
    asked = []

    def run(argv: list[str], *, timeout_s: float) -> str:
        asked.append((argv[0], timeout_s))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(command, "run", run)
    with_docker = replace(WHOLE, docker=Path("/d"))
    doctor.lacks_to_serve(with_docker, container=True)
    assert asked == []
    row = _rows(with_docker)["Docker"]
    assert asked == [("/d", 3.0)]
    assert (row.ok, row.found, row.fix) == (True, found, fix)


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [(("avx2",), True), (("avx2", "avx512f"), True), (("avx2", "avx_vnni"), False), (("asimd",), False), ((), False)],
)
def test_int8_saturates_on_x86_without_vnni(flags: tuple[str, ...], saturates: bool) -> None:
    assert Cpu(count=2, model="X", flags=flags).saturates_int8 is saturates


def test_torchserve_needs_its_packages_to_make_archives_and_java_to_serve_them() -> None:
    lacking = replace(WHOLE, distributions={**WHOLE.distributions, "torchserve": "absent", "pyyaml": "absent"})
    install = "pip install 'model-repository-pipeline[torchserve]'"
    assert doctor.lacks_to_archive(lacking) == (f"TorchServe: pyyaml, torchserve not installed; {install}",)
    assert doctor.lacks_to_serve_torchserve(WHOLE) == ("Java: none; apt-get install openjdk-17-jre-headless",)
    assert len(doctor.lacks_to_serve_torchserve(lacking)) == 2
    assert doctor.lacks_to_serve_torchserve(replace(WHOLE, java=Path("/java"))) == ()
    row = _rows(lacking)["TorchServe"]
    assert (row.ok, row.found, row.fix) == (True, "pyyaml, torchserve not installed (optional)", install)
    assert _rows(WHOLE)["TorchServe"].found == "pyyaml 1.0, torch-model-archiver 1.0, torchserve 1.0"


@pytest.mark.parametrize(
    ("version", "old"),
    [("1.8.0_392", True), ("11.0.21", True), ("16", True), ("17.0.1", False), ("17-ea", False), ("25", False),
     ("unknown", False)],
)  # fmt: skip
def test_java_before_17_is_a_gap_with_its_version(version: str, old: bool) -> None:
    found = replace(WHOLE, java=Path("/java"), java_version=version)
    row, gaps = _rows(found)["Java"], doctor.lacks_to_serve_torchserve(found)
    install = "apt-get install openjdk-17-jre-headless"
    told = "/java" if version == "unknown" else f"{version} at /java"
    if old:
        assert (row.ok, row.found, row.fix) == (True, f"{told}, older than 17 (optional)", install)
        assert gaps == (f"Java: {told}, older than 17; {install}",)
    else:
        assert (row.ok, row.found, row.fix) == (True, told, "")
        assert gaps == ()


def test_a_gpu_is_told() -> None:
    assert _rows(replace(WHOLE, gpu=Gpu(name="A", driver="1")))["GPU"].found == "A, driver 1"


def test_engines_need_their_library_and_classic_ones_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: None)
    library, gpu = doctor.lacks_to_build_engines(WHOLE, tensorrt_flavours.flavour("tensorrt"))
    assert library == "tensorrt: not installed; pip install tensorrt"
    assert gpu.startswith("GPU: none, and tensorrt builds engines on the GPU they are for; ")
    (library,) = doctor.lacks_to_build_engines(WHOLE, tensorrt_flavours.flavour("tensorrt_rtx"))
    assert library.startswith("tensorrt_rtx: not installed; pip install tensorrt-rtx-cu12-libs==")
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "1.0")
    with_gpu = replace(WHOLE, gpu=Gpu(name="A", driver="1", capability="sm_89", others=("sm_80",)))
    assert doctor.lacks_to_build_engines(with_gpu, tensorrt_flavours.flavour("tensorrt")) == ()


@pytest.mark.parametrize(
    ("gpu", "wanted", "lack"),
    [
        (Gpu(name="A", driver="1", capability="sm_89", others=("sm_80",)), ("sm_80", "sm_89"), ""),
        (
            Gpu(name="A", driver="1", capability="sm_89"),
            ("sm_80", "sm_89"),
            "GPU: sm_89, and tensorrt builds engines on",
        ),
        (Gpu(name="A", driver="1"), (), "GPU: A, and its driver's library libcuda.so.1 does not answer; "),
    ],
)
def test_classic_engines_need_each_gpu_they_are_for(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, wanted: tuple[str, ...], lack: str
) -> None:
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "1.0")
    here = replace(WHOLE, gpu=gpu)
    lacks = doctor.lacks_to_build_engines(here, tensorrt_flavours.flavour("tensorrt"), wanted)
    assert [text[: len(lack)] for text in lacks] == ([lack] if lack else [])
    assert "pip install" not in "".join(lacks)
    assert doctor.lacks_to_build_engines(here, tensorrt_flavours.flavour("tensorrt_rtx"), wanted) == ()


def test_running_engines_needs_a_gpu_and_cudas_bindings() -> None:
    assert doctor.lacks_to_run_engines(WHOLE) == "this machine has no GPU"
    here = replace(WHOLE, gpu=Gpu(name="A", driver="1"))
    install = "pip install 'model-repository-pipeline[gpu]'"
    assert doctor.lacks_to_run_engines(here) == f"cuda-bindings is not installed: {install}"
    assert (_rows(here)["cuda-bindings"].ok, _rows(here)["cuda-bindings"].fix) == (True, install)
    whole = replace(here, cuda_bindings=True)
    assert doctor.lacks_to_run_engines(whole) == ""
    assert (_rows(whole)["cuda-bindings"].found, _rows(whole)["cuda-bindings"].fix) == ("installed", "")


CPP = Cpp(
    cmake=Path("/usr/bin/cmake"),
    make=Path("/usr/bin/make"),
    compiler=Path("/usr/bin/c++"),
    opencv=Path("/usr/include/opencv4"),
    opencv_version="4.6.0",
    libtorch=Path("/t/share/cmake"),
)


@pytest.mark.parametrize(
    ("change", "gap"),
    [
        ({"cmake": None}, "no CMake (apt-get install cmake)"),
        ({"make": None}, "no make (apt-get install make)"),
        ({"compiler": None}, "no C++ compiler (apt-get install g++)"),
        ({"opencv": None}, "no OpenCV (apt-get install libopencv-imgcodecs-dev)"),
        ({"libtorch": None}, "no libtorch (pip install torch)"),
        (
            {"libtorch_cuda": "12.6"},
            "torch is built for CUDA 12.6, and its CMake files need nvcc (install CUDA's toolkit)",
        ),
    ],
)
def test_what_compiling_a_program_lacks_is_named_with_its_remedy(change, gap) -> None:
    assert doctor.lacks_to_compile(replace(WHOLE, cpp=CPP)) == ()
    assert doctor.lacks_to_compile(replace(WHOLE, cpp=replace(CPP, **change))) == (gap,)
    assert not doctor.lacks_to_compile(replace(WHOLE, cpp=replace(CPP, libtorch_cuda="12.6", nvcc=Path("/n"))))
    row = _rows(replace(WHOLE, cpp=replace(CPP, **change)))["C++"]
    assert (row.ok, row.found) == (True, f"{gap} (optional)")
    assert _rows(replace(WHOLE, cpp=CPP))["C++"].found == "/usr/bin/c++, /usr/bin/cmake, OpenCV 4.6.0"


def test_either_distribution_of_tensorflow_will_do() -> None:
    def lacks(**versions: str) -> tuple[str, ...]:
        return doctor.lacks_tensorflow(replace(WHOLE, distributions={**WHOLE.distributions, **versions}))

    assert lacks() == lacks(tensorflow="absent") == lacks(**{"tensorflow-cpu": "absent"}) == ()
    install = "not installed; pip install 'model-repository-pipeline[tensorflow]'"
    assert lacks(tensorflow="absent", **{"tensorflow-cpu": "absent"}) == (f"tensorflow-cpu: {install}",)
    assert lacks(keras="absent", tf2onnx="absent") == (f"keras, tf2onnx: {install}",)
    bare = replace(WHOLE, distributions={**WHOLE.distributions, **dict.fromkeys(environment.TENSORFLOW, "absent")})
    row = _rows(bare)["TensorFlow"]
    assert (row.ok, row.found) == (True, "none (optional)")
    assert row.fix == "pip install 'model-repository-pipeline[tensorflow]'"
    assert _rows(WHOLE)["TensorFlow"].fix == ""
