"""What this machine has, and what to type where it lacks something."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import command, environment
from pipeline.environment import Check, Cpu, Environment, Gpu
from pipeline.errors import MissingError, StageError

_NAMES = (*environment.REQUIRED, *environment.OPTIONAL, environment.SERVER)
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
    return {row.name: row for row in environment.checks(found)}


def test_probe_finds_what_is_here(tmp_path: Path) -> None:
    found = environment.probe(tmp_path / "not" / "yet")
    assert found.python_version.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert found.python_path == Path(sys.executable)
    assert found.distributions["nvidia-pytriton"] == "0.7.0"
    assert found.tritonserver is not None
    assert found.tritonserver.name == "tritonserver"
    assert found.tritonserver_version == "2.51.0"
    assert found.stub is not None
    assert found.stub.parent.name == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found.stub_versions[0] == "3.8"  # by number: 3.8 before 3.10
    assert found.disk_free_bytes > 0
    assert found.cpu.count >= 1
    assert not (tmp_path / "not").exists()


def test_probe_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    loaded = {"pytriton", "torch", "onnxruntime"} & set(sys.modules)
    times_s = []
    for _ in range(5):  # the best of five: the machine may be busy with something else
        started = time.perf_counter()
        environment.probe(tmp_path)
        times_s.append(time.perf_counter() - started)
    assert min(times_s) < 0.1
    assert {"pytriton", "torch", "onnxruntime"} & set(sys.modules) == loaded


def test_a_whole_machine_has_no_gap_that_blocks() -> None:
    rows = _rows(WHOLE)
    assert all(row.ok for row in rows.values())
    for name in ("GPU", "Java", "Docker"):
        assert rows[name].found == "none (optional)"
        assert rows[name].fix
    assert rows["CPU"].found == "2 x X (avx2)"
    assert WHOLE.lacks_to_build() == WHOLE.lacks_to_serve() == ()


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
    assert lacking.lacks_to_build() + lacking.lacks_to_serve() == told
    assert all(other.ok for name, other in _rows(lacking).items() if name != row)


def test_lacks_knows_what_a_configuration_asks_for() -> None:
    lacking = replace(WHOLE, distributions={**WHOLE.distributions, "timm": "absent"})
    assert lacking.lacks_to_build() == ()
    assert lacking.lacks_to_build(("timm", "torchvision")) == ("timm: not installed; pip install timm",)
    assert _rows(lacking)["model libraries"].found == "torchvision 1.0, transformers 1.0; timm not installed (optional)"
    assert _rows(lacking)["model libraries"].fix == "pip install timm"


def test_a_container_needs_docker_and_no_embedded_server() -> None:
    lacking = replace(WHOLE, tritonserver=None, stub=None, libpython=None)
    (text,) = lacking.lacks_to_serve(container=True)
    assert text.startswith("Docker: no client on PATH")
    assert replace(lacking, docker=Path("/usr/bin/docker")).lacks_to_serve(container=True) == ()


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
    with_docker.lacks_to_serve(container=True)
    assert asked == []
    row = _rows(with_docker)["Docker"]
    assert asked == [("/d", 3.0)]
    assert (row.ok, row.found, row.fix) == (True, found, fix)


def test_gpu_is_read_from_the_drivers_files(tmp_path: Path) -> None:
    devices, driver = tmp_path / "dev", tmp_path / "nvidia"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    assert environment._gpu(devices, driver) is None
    (devices / "nvidia0").touch()
    assert environment._gpu(devices, driver) == Gpu(name="unknown", driver="unknown")
    (driver / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (driver / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 12\n")
    (driver / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12\n"
    )
    assert environment._gpu(devices, driver) == Gpu(name="NVIDIA H200", driver="570.86.15")
    assert _rows(replace(WHOLE, gpu=Gpu(name="A", driver="1")))["GPU"].found == "A, driver 1"


def test_cpu_is_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 sse avx512_vnni\n")
    cpu = environment._cpu(cpuinfo)
    assert (cpu.model, cpu.flags) == ("Some CPU", ("avx2", "avx512_vnni"))
    assert environment._cpu(tmp_path / "nothing").flags == ()


def test_summary_is_json_for_the_report(tmp_path: Path) -> None:
    values = environment.summary(tmp_path)
    assert values["tritonserver"] == "2.51.0"
    assert values["cpu"]["count"] >= 1
    assert "torch" in values["distributions"]
    assert "absent" not in values["distributions"].values()
