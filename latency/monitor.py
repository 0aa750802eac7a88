"""State of a device: clocks, temperature, throttling, other processes.

Read between measuring windows; nothing is ever set.
"""

import os
import typing

import msgspec

from latency.errors import import_extra
from latency.units import kilo


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """State of a device at one moment.

    Attributes:
        clocks: values by name with unit, such as `sm_mhz`, `temperature_c`, `other_processes`.
        disturbed: why latencies measured now do not represent the device; empty if they do.
    """

    clocks: dict[str, float]
    disturbed: tuple[str, ...] = ()


@typing.runtime_checkable
class Monitor(typing.Protocol):
    """Watches a device."""

    def read(self) -> Reading:
        """Read the current state."""
        ...


class Nvml:
    """Monitor of an NVIDIA GPU, through NVML.

    Throttling by heat, by the power brake or by the board disturbs a measurement. A power cap slows it down too, but is
    part of the GPU's behaviour under load and occurs in use: it is recorded (`power_capped`), not a disturbance.
    Compute processes that exist at the first reading are no disturbance either, as some never exit; later ones are.

    Args:
        pci_bus_id: PCI bus ID of the GPU, such as `0000:01:00.0`.

    Raises:
        MissingExtra: nvidia-ml-py is not installed.
    """

    def __init__(self, pci_bus_id: str) -> None:
        self._nvml = import_extra("pynvml", "tensorrt")
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        self._usual: int | None = None

    def read(self) -> Reading:
        """Read the current state; values that this GPU does not report are omitted."""
        nvml, handle = self._nvml, self._handle
        queries: dict[str, typing.Callable[[], float]] = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: kilo(nvml.nvmlDeviceGetPowerUsage(handle)),
            "other_processes": lambda: sum(
                process.pid != os.getpid() for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ),
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
            (
                "thermal slowdown",
                nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
            ),
            ("power brake", nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown),
            ("hardware slowdown", nvml.nvmlClocksThrottleReasonHwSlowdown),
        ]
