"""The few calls into the CUDA runtime that timing on a GPU needs. They use the primary context, as torch does."""

import platform
from typing import Any

import numpy as np

from latency.device import Device
from latency.errors import DeviceUnavailable, RunFailed, require


class Cuda:
    """CUDA's runtime API with its error codes turned into exceptions.

    Args:
        extra: the extra of this project that installs CUDA's Python bindings, for the error that says so.

    Raises:
        MissingExtra: the bindings are not installed.
        DeviceUnavailable: there is no driver, or no GPU.
    """

    def __init__(self, extra: str) -> None:
        self._runtime: Any = require("cuda.bindings.runtime", extra)
        self._nvml: Any = require("pynvml", extra)
        error, count = self._runtime.cudaGetDeviceCount()
        if error or not count:
            what = {
                "cudaErrorInsufficientDriver": "no NVIDIA driver found (libcuda.so.1 is missing or too old)",
                "cudaErrorNoDevice": "the NVIDIA driver finds no GPU",
            }.get(error.name, "CUDA does not start")
            raise DeviceUnavailable(f"{what}: {error.name}: look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime")

    def __call__(self, function: str, *args: Any) -> Any:
        """Call a function of the runtime API by its name.

        Raises:
            RunFailed: it returns an error.
        """
        error, *values = getattr(self._runtime, function)(*args)
        if error:
            raise RunFailed(f"{function}: {error.name}")
        return values[0] if values else None

    def device(self) -> Device:
        """The fingerprint of the current GPU."""
        properties = self("cudaGetDeviceProperties", self("cudaGetDevice"))
        self._nvml.nvmlInit()
        try:
            driver = self._nvml.nvmlSystemGetDriverVersion()
        finally:
            self._nvml.nvmlShutdown()
        return Device(
            kind="gpu",
            name=properties.name.decode().rstrip("\0"),
            cores=0,
            threads=0,
            isa=(),
            memory_mib=properties.totalGlobalMem >> 20,
            driver=driver,
            compute_capability=f"{properties.major}.{properties.minor}",
            os=f"{platform.system()} {platform.machine()}",
        )

    def upload(self, pointer: int, array: np.ndarray) -> None:
        """Copy an array to device memory, and wait for it."""
        self("cudaMemcpy", pointer, array.ctypes.data, array.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, array: np.ndarray, pointer: int) -> None:
        """Copy device memory to an array, and wait for it."""
        self("cudaMemcpy", array.ctypes.data, pointer, array.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)
