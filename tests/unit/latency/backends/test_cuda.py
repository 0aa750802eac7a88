import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import simulated_cuda
from latency import DeviceUnavailable, MissingExtra, RunFailed
from latency.backends.cuda import Cuda, CudaCore, PyCuda, connect
from latency.distribution import install_command
from simulated_cuda import CUDAError, module


@pytest.fixture
def gpu(monkeypatch):
    gpu = simulated_cuda.Gpu()
    for name, found in gpu.modules().items():
        monkeypatch.setitem(sys.modules, name, found)
    return gpu


def test_the_fingerprint_of_a_gpu(gpu):
    cuda = connect("tensorrt")
    assert isinstance(cuda, Cuda)
    device = cuda.device()
    assert (device.kind, device.name, device.driver, device.compute_capability) == ("gpu", "Fake GPU", "580.1", "8.9")
    assert (device.memory_mib, device.cores, device.threads, device.isa) == (8 * 1024, 0, 0, ())
    assert cuda.pci_bus_id() == "0000:01:00.0"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (RuntimeError("libcuda.so.1"), r"no NVIDIA driver found \(libcuda\.so\.1 is missing or too old\)"),
        (CUDAError("CUDA_ERROR_NO_DEVICE: no\ndevice."), "CUDA does not start: CUDA_ERROR_NO_DEVICE: no device"),
    ],
)
def test_no_gpu_is_said_in_one_line_with_a_way_out(gpu, refusal, words):
    gpu.refusal = refusal
    way_out = "look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime"
    with pytest.raises(DeviceUnavailable, match=f"^{words}: {way_out}$"):
        connect("tensorrt")


@pytest.mark.parametrize("absent", ["cuda.bindings.driver", "cuda.core"])
def test_missing_bindings_name_the_extra(gpu, monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)  # makes the import fail
    with pytest.raises(MissingExtra, match=re.escape(f"'{absent}': {install_command('tensorrt-rtx')}")):
        connect("tensorrt-rtx")


def test_what_cuda_refuses_is_said_in_one_line(gpu):
    gpu.most_buffers = 0
    with pytest.raises(RunFailed, match=r"^CUDA_ERROR_OUT_OF_MEMORY: out of memory$"), connect("tensorrt").memory(4):
        pass


def test_arrays_go_up_and_come_down_again(gpu):
    cuda, array, back = connect("tensorrt"), np.arange(6, dtype=np.float32), np.empty(6, np.float32)
    with cuda.memory(array.nbytes) as address:
        cuda.upload(address, array)
        cuda.download(back, address)
    assert np.array_equal(array, back)
    assert gpu.live == {}


class PyCudaError(Exception):
    pass


@pytest.fixture
def pycuda(monkeypatch, gpu):
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


def test_a_broken_pycuda_gives_way_to_cuda_core_with_a_warning(gpu, broken_pycuda):
    words = r"^pycuda cannot be loaded \(libcurand\.so\.10: cannot open shared object file\): cuda\.core is used"
    with pytest.warns(RuntimeWarning, match=words):
        assert isinstance(connect("tensorrt"), CudaCore)


def test_a_broken_pycuda_with_nothing_in_its_place_is_said_in_one_line(broken_pycuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(
        DeviceUnavailable, match=r"^pycuda cannot be loaded \(libcurand.*, and there is no cuda\.core .*: pip install"
    ):
        connect("tensorrt")
