"""What this machine has, and what to type where it lacks something."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline import environment
from pipeline.environment import Gpu


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
