"""What else goes on at a device: clocks, temperature, throttling, other processes. Read between measuring windows; nothing is ever set."""

import os
import typing

import msgspec

from latency.errors import require
from latency.units import kilo


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of itself at one moment.

    Attributes:
        clocks: by name with unit, such as `sm_mhz`, `temperature_c`, `other_processes`.
        disturbed: why what is measured now is not what the device can do; empty where nothing is wrong.
    """

    clocks: dict[str, float]
    disturbed: tuple[str, ...] = ()


@typing.runtime_checkable
class Monitor(typing.Protocol):
    """Watches a device."""

    def read(self) -> Reading:
        """How it is now."""
        ...


class Nvml:
    """An NVIDIA GPU, watched through NVML.

    Throttling by heat, by the power brake or by the board slows down what is measured. A power cap does too, but belongs to the GPU at
    its load and would be met in use: it is a number (`power_capped`), no disturbance. Compute processes that were there at the first
    reading are one as well, as some never leave; one that comes later disturbs.

    Args:
        pci_bus_id: of the GPU, such as `0000:01:00.0`.

    Raises:
        MissingExtra: nvidia-ml-py is not installed.
    """

    def __init__(self, pci_bus_id: str) -> None:
        self._nvml: typing.Any = require("pynvml", "tensorrt")
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        self._usual: int | None = None

    def read(self) -> Reading:
        """How it is now; a value that this GPU does not tell is left out."""
        nvml, handle = self._nvml, self._handle
        queries: dict[str, typing.Callable[[], float]] = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: kilo(nvml.nvmlDeviceGetPowerUsage(handle)),
            "other_processes": lambda: sum(found.pid != os.getpid() for found in nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        clocks: dict[str, float] = {}
        for name, query in queries.items():
            try:
                clocks[name] = float(query())
            except nvml.NVMLError:
                continue
        reasons = int(clocks.pop("throttle_reasons", 0))
        clocks["power_capped"] = float(bool(reasons & nvml.nvmlClocksThrottleReasonSwPowerCap))
        disturbed = [words for words, reason in self._slowdowns() if reasons & reason]
        others = int(clocks.get("other_processes", 0))
        if self._usual is None:
            self._usual = others
        if others > self._usual:
            disturbed.append(f"{others - self._usual} more processes on the GPU")
        return Reading(clocks=clocks, disturbed=tuple(disturbed))

    def _slowdowns(self) -> list[tuple[str, int]]:
        nvml = self._nvml
        return [
            ("thermal slowdown", nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown),
            ("power brake", nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown),
            ("hardware slowdown", nvml.nvmlClocksThrottleReasonHwSlowdown),
        ]
