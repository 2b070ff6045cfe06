"""What CUDA's driver is asked, with a driver of two GPUs that is compiled here; it has no GPU to run on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.machine import cuda_driver, environment
from pipeline.machine.cuda_driver import Device, DriverError
from pipeline.machine.environment import Gpu

DRIVER = r"""
#include <stdio.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "GPU %d", device) < 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 + device : attribute == 76 ? (device ? 0 : 9) : -1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return device ? 101 : 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)1 ? 0 : 201; }
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *, status: int = 0, count: int = 2) -> None:
    """Let that library be the driver's."""
    source, library = folder / "cuda.c", folder / f"libcuda-{status}-{count}.so"
    source.write_text(DRIVER)
    words = ["cc", "-shared", "-fPIC", f"-DINIT={status}", f"-DCOUNT={count}", "-o", str(library), str(source)]
    subprocess.run(words, check=True)
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(library))


def test_gpus_are_told_in_cudas_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)
    first, second = cuda_driver.devices()
    assert first == Device(index=0, name="GPU 0", capability="sm_89")
    assert second == Device(index=1, name="GPU 1", capability="sm_90")
    first.take()
    with pytest.raises(DriverError, match="the GPU GPU 1 cannot be used: CUDA error 101"):
        second.take()


def test_no_driver_and_no_gpu_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(DriverError, match="no NVIDIA driver: "):
        cuda_driver.devices()
    install(monkeypatch, tmp_path, status=100)
    with pytest.raises(DriverError, match="no NVIDIA GPU: the driver answers with CUDA error 100"):
        cuda_driver.devices()
    install(monkeypatch, tmp_path, count=0)
    with pytest.raises(DriverError, match="no NVIDIA GPU"):
        cuda_driver.devices()


def test_name_and_capability_are_of_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver's files list GPUs by their slots, and those CUDA_VISIBLE_DEVICES hides too."""
    install(monkeypatch, tmp_path)
    devices, driver = tmp_path / "dev", tmp_path / "nvidia"
    devices.mkdir()
    (devices / "nvidia0").touch()
    (driver / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (driver / "gpus" / "0000:01:00.0" / "information").write_text("Model: another\n")
    assert environment._gpu(devices, driver) == Gpu(
        name="GPU 0", driver="unknown", capability="sm_89", others=("sm_90",)
    )
