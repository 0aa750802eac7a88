"""Real programs are exported and loaded; the GPU is a fake one, on which torch's CPU computes."""

import contextlib
import importlib
import io
import sys
from types import ModuleType, SimpleNamespace

import pytest

from latency import BuildFailed, DeviceUnavailable, Lowered, RunFailed, backends
from latency.backends import Compiled
from latency.backends.torch_cuda import CompiledProgram, TorchCuda
from latency.lowered import OVERHEAD, overhead_onnx
from latency.measure import Launched

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def program():
    network = torch.nn.Conv2d(3, 8, 3).eval()
    exported, file = torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), io.BytesIO()
    torch.export.save(exported, file)
    return file.getvalue()


@pytest.fixture
def gpu(monkeypatch):
    """Torch whose GPU is its CPU; an inference takes 40 microseconds."""
    state = SimpleNamespace(now_us=0.0, replays=0, blocking=[], capturable=True)

    class Event:
        def __init__(self, *, enable_timing, blocking):
            assert enable_timing
            state.blocking.append(blocking)

        def record(self, stream):
            self.us = state.now_us
            state.now_us += 20.0

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return (end.us - self.us) / 1e3

    class Graph:
        def replay(self):
            state.replays += 1
            state.now_us += 20.0

    @contextlib.contextmanager
    def capture(graph, stream):
        if not state.capturable:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        yield

    cuda = SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 0,
        get_device_properties=lambda index: SimpleNamespace(
            name="Fake GPU", total_memory=2**33, major=8, minor=9, pci_domain_id=0, pci_bus_id=1, pci_device_id=0
        ),
        Event=Event,
        Stream=lambda: SimpleNamespace(synchronize=lambda: None),
        stream=lambda stream: contextlib.nullcontext(),
        CUDAGraph=Graph,
        graph=capture,
    )
    nvml = ModuleType("pynvml")
    vars(nvml).update(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "1.2",
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch, "cuda", cuda)
    move = importlib.import_module("torch.export.passes").move_to_device_pass
    monkeypatch.setattr(torch.export.passes, "move_to_device_pass", lambda program, device: move(program, "cpu"))
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *args, **named: to(self, *[("cpu" if a == "cuda" else a) for a in args], **named),
    )
    return state


def test_without_a_gpu_it_says_what_to_do():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        DeviceUnavailable,
        match="finds no GPU: look at `nvidia-smi`, install a torch built for CUDA, or measure on the CPU",
    ):
        backends.get("torch-cuda")


def test_its_fingerprint(gpu):
    backend = backends.get("torch-cuda")
    assert isinstance(backend, backends.Backend)
    assert (backend.device.name, backend.device.compute_capability, backend.device.driver) == ("Fake GPU", "8.9", "1.2")
    assert (backend.runtime.version, backend.precision) == (torch.__version__, "fp16")
    assert backend.settings["memory_format"] == "channels_last"


def test_a_program_runs_channels_last_eagerly_or_as_a_graph(gpu, program):
    with TorchCuda().compile(Lowered(onnx=b"", program=program)) as compiled:
        assert isinstance(compiled, Compiled)
        assert isinstance(compiled, Launched)
        assert compiled._inputs[0].is_contiguous(memory_format=torch.channels_last)
        assert compiled._inputs[0].std() > 0.5
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last)
            for weight in compiled._module.parameters()
            if weight.dim() == 4
        )
        assert compiled.run(3) == pytest.approx([20.0] * 3)
        assert compiled.launch(cuda_graph=True, spin_wait=False) == ""
        assert gpu.blocking[-4:] == [True] * 4
        assert compiled.run(3) == pytest.approx([40.0] * 3)
        assert gpu.replays == 3
        assert compiled.run(0) == []


def test_what_cannot_be_captured_is_run_without_a_graph_and_says_so(gpu, program):
    with TorchCuda().compile(Lowered(onnx=b"", program=program)) as compiled:
        gpu.capturable = False
        said = compiled.launch(cuda_graph=True, spin_wait=True)
        assert (
            said
            == "measured without a CUDA graph, as it cannot be captured: operation not permitted when stream is capturing"
        )
        assert compiled.run(1) == pytest.approx([20.0])


def test_what_torch_refuses_is_a_failure_in_one_line(gpu, program):
    with TorchCuda().compile(Lowered(onnx=b"", program=program)) as compiled:

        def refuse():
            raise RuntimeError("CUDA error:\nout of memory")

        compiled._launch = refuse
        with pytest.raises(RunFailed, match="^CUDA error: out of memory$"):
            compiled.run(1)


def test_onnx_alone_is_not_enough_but_for_the_overhead(gpu):
    backend = TorchCuda()
    with pytest.raises(BuildFailed, match="only ONNX was given: lower the network together with its program"):
        backend.compile(b"onnx")
    with pytest.raises(BuildFailed, match="torch cannot load the program"):
        backend.compile(Lowered(onnx=b"", program=b"no program"))
    with backend.compile(Lowered(onnx=overhead_onnx(), key=OVERHEAD)) as compiled:
        assert isinstance(compiled, CompiledProgram)
        assert len(compiled.run(2)) == 2
