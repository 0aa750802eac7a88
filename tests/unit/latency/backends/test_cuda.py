import enum
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from latency import DeviceUnavailable, MissingExtra, RunFailed
from latency.backends.cuda import Cuda


def module(**fields):
    made = ModuleType("fake")
    vars(made).update(fields)
    return made


Error = enum.IntEnum(
    "Error",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorUnknown": 999,
    },
)


@pytest.fixture
def runtime(monkeypatch):
    """A CUDA runtime whose device memory is a dictionary, and an NVML that knows the driver's version."""
    memory = {}

    def copy(destination, source, size, kind):
        import ctypes

        if kind == "up":
            memory[destination] = ctypes.string_at(source, size)
        else:
            ctypes.memmove(destination, memory[source], size)
        return (Error.cudaSuccess,)

    fake = module(
        cudaGetDeviceCount=lambda: (Error.cudaSuccess, 1),
        cudaGetDevice=lambda: (Error.cudaSuccess, 0),
        cudaGetDeviceProperties=lambda index: (
            Error.cudaSuccess,
            SimpleNamespace(name=b"NVIDIA Test" + b"\0" * 9, totalGlobalMem=24 * 2**30 + 5, major=12, minor=0),
        ),
        cudaMalloc=lambda size: (Error.cudaErrorMemoryAllocation, None),
        cudaMemcpy=copy,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
    )
    nvml = module(nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.1")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return fake


def test_the_fingerprint_of_a_gpu(runtime):
    device = Cuda("tensorrt").device()
    assert (device.kind, device.name, device.driver, device.compute_capability) == ("gpu", "NVIDIA Test", "580.1", "12.0")
    assert (device.memory_mib, device.cores, device.threads, device.isa) == (24 * 1024, 0, 0, ())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (Error.cudaErrorInsufficientDriver, None),
            r"no NVIDIA driver found \(libcuda\.so\.1 is missing or too old\): cudaErrorInsufficientDriver",
        ),
        ((Error.cudaErrorNoDevice, None), "the NVIDIA driver finds no GPU: cudaErrorNoDevice"),
        ((Error.cudaErrorUnknown, None), "CUDA does not start: cudaErrorUnknown"),
        ((Error.cudaSuccess, 0), "CUDA does not start: cudaSuccess"),
    ],
)
def test_no_gpu_is_said_in_one_line_with_a_way_out(runtime, answer, words):
    runtime.cudaGetDeviceCount = lambda: answer
    with pytest.raises(DeviceUnavailable, match=f"^{words}: look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime$"):
        Cuda("tensorrt")


def test_missing_bindings_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # makes the import fail
    with pytest.raises(MissingExtra, match=r"'cuda\.bindings\.runtime': pip install 'lathe\[tensorrt-rtx\]'"):
        Cuda("tensorrt-rtx")


def test_an_error_code_becomes_an_exception(runtime):
    with pytest.raises(RunFailed, match=r"^cudaMalloc: cudaErrorMemoryAllocation$"):
        Cuda("tensorrt")("cudaMalloc", 1)


def test_arrays_go_up_and_come_down_again(runtime):
    cuda, array, back = Cuda("tensorrt"), np.arange(6, dtype=np.float32), np.empty(6, np.float32)
    cuda.upload(7, array)
    cuda.download(back, 7)
    assert np.array_equal(array, back)


def test_the_real_bindings_have_every_function_that_is_called():
    bindings = pytest.importorskip("cuda.bindings.runtime")
    called = (
        "GetDeviceCount GetDevice GetDeviceProperties Memcpy Malloc Free StreamCreate StreamDestroy StreamSynchronize "
        "EventCreate EventDestroy EventRecord EventSynchronize EventElapsedTime"
    )
    assert all(callable(getattr(bindings, f"cuda{name}")) for name in called.split())
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(bindings.cudaMemcpyKind.__members__)
    assert not bindings.cudaError_t.cudaSuccess
    assert bindings.cudaError_t.cudaErrorInsufficientDriver
