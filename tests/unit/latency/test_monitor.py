import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from latency.monitor import Monitor, Nvml


class NVMLError(Exception):
    pass


@pytest.fixture
def gpu(monkeypatch):
    """What NVML says of a GPU; `power` is not supported by this one."""
    state = SimpleNamespace(reasons=0, pids=[os.getpid()], temperature=61)

    def refuse(handle):
        raise NVMLError("not supported")

    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonHwSlowdown=8,
        nvmlClocksThrottleReasonSwThermalSlowdown=32,
        nvmlClocksThrottleReasonHwThermalSlowdown=64,
        nvmlClocksThrottleReasonHwPowerBrakeSlowdown=128,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1410, 2: 5001}[kind],
        nvmlDeviceGetTemperature=lambda handle, kind: state.temperature,
        nvmlDeviceGetPowerUsage=refuse,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=pid) for pid in state.pids],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: state.reasons,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return state


def test_a_quiet_gpu(gpu):
    monitor = Nvml("0000:01:00.0")
    assert isinstance(monitor, Monitor)
    reading = monitor.read()
    assert reading.clocks == {
        "sm_mhz": 1410.0,
        "memory_mhz": 5001.0,
        "temperature_c": 61.0,
        "other_processes": 0.0,
        "power_capped": 0.0,
    }
    assert reading.disturbed == ()


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (1, ()),
        (2, ()),
        (4, ()),
        (32, ("thermal slowdown",)),
        (64, ("thermal slowdown",)),
        (8 + 128, ("power brake", "hardware slowdown")),
    ],
)
def test_what_slows_a_gpu_down_disturbs_and_a_power_cap_is_a_number(gpu, reasons, words):
    gpu.reasons = reasons
    reading = Nvml("0000:01:00.0").read()
    assert reading.disturbed == words
    assert reading.clocks["power_capped"] == float(reasons == 4)


def test_a_process_that_comes_disturbs_and_one_that_was_there_does_not(gpu):
    gpu.pids = [os.getpid(), 1]
    monitor = Nvml("0000:01:00.0")
    assert (monitor.read().disturbed, monitor.read().clocks["other_processes"]) == ((), 1.0)
    gpu.pids = [os.getpid(), 1, 2]
    assert monitor.read().disturbed == ("1 more processes on the GPU",)


def test_the_real_nvml_has_what_is_called(gpu, monkeypatch):
    monkeypatch.undo()
    nvml = pytest.importorskip("pynvml")
    names = (
        "Init",
        "Shutdown",
        "SystemGetDriverVersion",
        "DeviceGetHandleByPciBusId",
        "DeviceGetClockInfo",
        "DeviceGetTemperature",
    )
    more = ("DeviceGetPowerUsage", "DeviceGetComputeRunningProcesses", "DeviceGetCurrentClocksThrottleReasons")
    assert all(callable(getattr(nvml, f"nvml{name}")) for name in names + more)
    reasons = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert [getattr(nvml, f"nvmlClocksThrottleReason{name}") for name in reasons] == [4, 8, 32, 64, 128]
