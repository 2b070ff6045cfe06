"""What this machine has, and what to type where it lacks something."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from pipeline.machine import environment
from pipeline.machine.environment import Gpu


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


def test_cudas_bindings_are_looked_for_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, found in (((), False), (("cuda",), False), (("cuda", "cuda.bindings"), True)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, here=here: name if name in here else None)
        assert environment._cuda_bindings() is found
    assert "cuda" not in sys.modules


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


def test_opencv_is_found_where_cmake_is_told_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = tmp_path / "include" / "opencv4" / "opencv2"
    (headers / "core").mkdir(parents=True)
    (headers / "imgcodecs.hpp").touch()
    lines = [f"#define CV_VERSION_{part}   {value}" for part, value in (("MAJOR", 4), ("MINOR", 10), ("REVISION", 1))]
    (headers / "core" / "version.hpp").write_text("\n".join(["#ifndef X", *lines]) + "\n")
    for name, value in (("OpenCV_DIR", tmp_path / "lib" / "cmake" / "opencv4"), ("CMAKE_PREFIX_PATH", tmp_path)):
        with monkeypatch.context() as told:
            told.setenv(name, str(value))
            found = environment.probe(tmp_path).cpp
            assert (found.opencv, found.opencv_version) == (headers.parent, "4.10.1")
    assert environment.probe(tmp_path).cpp.opencv != headers.parent


def test_a_torch_for_cuda_is_told_by_its_version_file(tmp_path: Path) -> None:
    version = tmp_path / "version.py"
    version.write_text("__all__ = ['cuda']\n__version__ = '2.13.0+cu126'\ncuda: Optional[str] = '12.6'\n")
    assert environment._torch_cuda(version) == "12.6"
    version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert environment._torch_cuda(version) == ""


def test_the_compiler_is_the_one_that_the_user_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "my-c++"
    own.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(own))
    assert environment.probe(tmp_path).cpp.compiler == own


@pytest.mark.parametrize("place", ["bin", "jre/bin"])
def test_java_s_version_is_read_from_its_release_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    java = tmp_path / "jdk" / place / "java"
    java.parent.mkdir(parents=True)
    java.touch(mode=0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(java)
    monkeypatch.setenv("JAVA_HOME", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert environment.probe(tmp_path).java_version == "unknown"
    (tmp_path / "jdk" / "release").write_text('IMPLEMENTOR="X"\nJAVA_VERSION="1.8.0_392"\nOS_NAME="Linux"\n')
    found = environment.probe(tmp_path)
    assert (found.java, found.java_version) == (tmp_path / "bin" / "java", "1.8.0_392")
    assert found.java_too_old
