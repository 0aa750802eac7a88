import enum
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from latency import DeviceUnavailable, MissingExtra, RunFailed
from latency.backends.cuda import Cuda, CudaPython, PyCuda, connect
from latency.distribution import install_command


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
    cuda = connect("tensorrt")
    assert isinstance(cuda, Cuda)
    device = cuda.device()
    assert (device.kind, device.name, device.driver, device.compute_capability) == (
        "gpu",
        "NVIDIA Test",
        "580.1",
        "12.0",
    )
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
    with pytest.raises(
        DeviceUnavailable, match=f"^{words}: look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime$"
    ):
        connect("tensorrt")


def test_missing_bindings_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # makes the import fail
    with pytest.raises(MissingExtra, match=re.escape(f"'cuda.bindings.runtime': {install_command('tensorrt-rtx')}")):
        connect("tensorrt-rtx")


def test_an_error_code_becomes_an_exception(runtime):
    with pytest.raises(RunFailed, match=r"^cudaMalloc: cudaErrorMemoryAllocation$"), CudaPython("tensorrt").memory(1):
        pass


def test_arrays_go_up_and_come_down_again(runtime):
    cuda, array, back = connect("tensorrt"), np.arange(6, dtype=np.float32), np.empty(6, np.float32)
    cuda.upload(7, array)
    cuda.download(back, 7)
    assert np.array_equal(array, back)


def test_the_real_bindings_have_every_function_that_is_called():
    bindings = pytest.importorskip("cuda.bindings.runtime")
    called = (
        "GetDeviceCount GetDevice GetDeviceProperties Memcpy Malloc Free StreamCreate StreamDestroy StreamSynchronize "
        "EventCreateWithFlags EventDestroy EventRecord EventSynchronize EventElapsedTime DeviceGetPCIBusId GetLastError "
        "StreamBeginCapture StreamEndCapture GraphInstantiate GraphLaunch GraphDestroy GraphExecDestroy"
    )
    assert all(callable(getattr(bindings, f"cuda{name}")) for name in called.split())
    assert isinstance(bindings.cudaEventBlockingSync, int)
    assert "cudaStreamCaptureModeThreadLocal" in bindings.cudaStreamCaptureMode.__members__
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(bindings.cudaMemcpyKind.__members__)
    assert not bindings.cudaError_t.cudaSuccess
    assert bindings.cudaError_t.cudaErrorInsufficientDriver


class PyCudaError(Exception):
    pass


@pytest.fixture
def pycuda(monkeypatch, runtime):
    """`pycuda.driver` over a GPU whose clock goes on by a tick an event, and libcuda, which counts its calls."""
    calls, ticks = [], iter(range(1000))

    class Event:
        def __init__(self, flags):
            self.flags = flags

        def record(self, stream):
            self.tick = next(ticks)

        def synchronize(self):
            calls.append("wait")

        def time_since(self, start):
            return float(self.tick - start.tick)

    context = SimpleNamespace(push=lambda: calls.append("push"), pop=lambda: calls.append("pop"))
    device = SimpleNamespace(
        name=lambda: "NVIDIA Test",
        total_memory=lambda: 2**33,
        compute_capability=lambda: (8, 9),
        pci_bus_id=lambda: "0000:01:00.0",
        retain_primary_context=lambda: context,
    )

    def refuse(size):
        raise PyCudaError("out of\nmemory")

    fake = module(
        Error=PyCudaError,
        init=lambda: None,
        Device=lambda index: device,
        Stream=lambda: SimpleNamespace(handle=77, synchronize=lambda: calls.append("synchronize")),
        Event=Event,
        event_flags=SimpleNamespace(BLOCKING_SYNC=1, DEFAULT=0),
        mem_alloc=refuse,
    )

    class Library:
        fails = ""

        def __getattr__(self, name):
            def call(*arguments):
                calls.append(name)
                return 900 if name == self.fails else 0

            return call

    library = Library()
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("atexit.register", lambda function: None)
    monkeypatch.setitem(sys.modules, "pycuda", module(driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return SimpleNamespace(calls=calls, driver=fake, library=library)


def test_pycuda_comes_first_and_uses_the_primary_context(pycuda):
    cuda = connect("tensorrt")
    assert isinstance(cuda, PyCuda)
    assert isinstance(cuda, Cuda)
    assert pycuda.calls == ["push"]
    assert (cuda.device().name, cuda.device().compute_capability, cuda.pci_bus_id()) == (
        "NVIDIA Test",
        "8.9",
        "0000:01:00.0",
    )
    with cuda.stream() as stream, cuda.event(blocking=True) as start, cuda.event(blocking=False) as end:
        assert (start.flags, end.flags, cuda.address(stream)) == (1, 0, 77)
        cuda.record(start, stream)
        cuda.record(end, stream)
        cuda.wait(end)
        assert cuda.elapsed_us(start, end) == 1e3
    with pytest.raises(RunFailed, match="^out of memory$"), cuda.memory(1):
        pass


def test_pycuda_has_no_graphs_so_the_driver_is_asked(pycuda):
    cuda = connect("tensorrt")
    with cuda.stream() as stream, cuda.graph(stream, lambda: pycuda.calls.append("enqueue")) as launch:
        launch()
        launch()
    names = [
        "cuStreamBeginCapture_v2",
        "enqueue",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
    ]
    assert pycuda.calls[1:] == [*names, "cuGraphLaunch", "cuGraphLaunch", "cuGraphExecDestroy"]
    pycuda.library.fails = "cuStreamEndCapture"
    with pytest.raises(RunFailed, match="^cuStreamEndCapture: error 900$"), cuda.graph(stream, lambda: None):
        pass


def test_pycuda_without_a_driver(pycuda, monkeypatch):
    def init():
        raise PyCudaError("cuInit failed: no device")

    pycuda.driver.init = init
    with pytest.raises(DeviceUnavailable, match="^CUDA does not start: cuInit failed: no device: look at"):
        connect("tensorrt")


@pytest.fixture
def broken_pycuda(monkeypatch):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "pycuda.driver":
                raise ImportError("libcurand.so.10: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "pycuda", module(__path__=[]))
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])


def test_a_broken_pycuda_gives_way_to_cuda_python_with_a_warning(runtime, broken_pycuda):
    words = r"^pycuda cannot be loaded \(libcurand\.so\.10: cannot open shared object file\): cuda-python is used"
    with pytest.warns(RuntimeWarning, match=words):
        assert isinstance(connect("tensorrt"), CudaPython)


def test_a_broken_pycuda_with_nothing_in_its_place_is_said_in_one_line(broken_pycuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(
        DeviceUnavailable, match=r"^pycuda cannot be loaded \(libcurand.*, and there is no cuda-python .*: pip install"
    ):
        connect("tensorrt")
