"""The GPUs as CUDA's driver tells them, with ctypes alone: every machine that can run on a GPU has its library.

Not NVML (nvidia-ml-py) or nvidia-smi: these number GPUs by their slots and do not heed CUDA_VISIBLE_DEVICES, so their
first GPU need not be the one that a program gets.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h
_NAME_BYTES = 256


class DriverError(Exception):
    """No driver, no GPU, or one that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU.

    Attributes:
        index: CUDA's number of it.
        capability: its compute capability: ``sm_90``.
    """

    index: int
    name: str
    capability: str

    def take(self) -> None:
        """Make it the one that this thread works on; a DriverError where the driver refuses."""
        cuda, context = _library(), ctypes.c_void_p()
        status = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), self.index) or cuda.cuCtxSetCurrent(context)
        if status:
            raise DriverError(f"the GPU {self.name} cannot be used: CUDA error {status}")


def devices() -> tuple[Device, ...]:
    """All GPUs, in CUDA's order; at least one.

    Raises:
        DriverError: no driver, or no GPU.
    """
    cuda, count = _library(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        raise DriverError(f"no NVIDIA GPU: the driver answers with CUDA error {status}")
    return tuple(_device(cuda, index) for index in range(count.value))


def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DriverError(f"no NVIDIA driver: {error}") from error


def _device(cuda: ctypes.CDLL, index: int) -> Device:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    status = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    )
    if status:
        raise DriverError(f"no use of GPU {index}: the driver answers with CUDA error {status}")
    return Device(index=device.value, name=name.value.decode(), capability=f"sm_{major.value}{minor.value}")
