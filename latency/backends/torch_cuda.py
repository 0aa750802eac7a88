"""Torch on the GPU: exported programs at half precision, channels last, replayed as CUDA graphs.

Torch is imported on first use only.
"""

import io
import time
import zipfile
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

from latency.backends.cuda import gpu
from latency.device import Runtime
from latency.errors import BuildFailed, DeviceUnavailable, RunFailed, import_extra, one_line
from latency.lowered import OVERHEAD, Lowered
from latency.monitor import Nvml
from latency.units import us_from_ms


class TorchCuda:
    """Backend that runs `Lowered.program`, which the lowering wrote in the same call as the ONNX.

    ONNX alone it cannot run.

    `torch.export.load` unpickles: a program must come from this process's own lowering or from where one would run code
    from.

    Args:
        precision: of the programs; it is in their weights.

    Raises:
        MissingExtra: torch or nvidia-ml-py is not installed.
        DeviceUnavailable: torch finds no GPU.
    """

    name = "torch-cuda"
    clock = staticmethod(time.perf_counter_ns)

    def __init__(self, *, precision: Literal["fp32", "fp16"] = "fp16") -> None:
        self._torch: Any = import_extra("torch", "train")
        torch = self._torch
        if not torch.cuda.is_available():
            raise DeviceUnavailable(
                f"torch {torch.__version__} finds no GPU: look at `nvidia-smi`, install a torch built for CUDA, or "
                "measure on the CPU with "
                "--backend onnxruntime"
            )
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.precision: Literal["fp32", "fp16"] = precision
        self.device = gpu(
            "tensorrt", name=found.name, memory_bytes=found.total_memory, capability=(found.major, found.minor)
        )
        self.runtime = Runtime(name=self.name, version=torch.__version__)
        self.settings = {"cudnn": str(torch.backends.cudnn.version()), "memory_format": "channels_last"}
        self.monitor = Nvml(f"{found.pci_domain_id:08x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0")

    def compile(self, model: bytes | Lowered) -> "CompiledProgram":
        """Load a program onto the GPU.

        Raises:
            BuildFailed: there is no program, or torch cannot load it.
        """
        torch, lowered = self._torch, Lowered.of(model)
        if lowered.program is not None:
            try:
                program = torch.export.load(io.BytesIO(lowered.program))
            except (RuntimeError, zipfile.BadZipFile) as error:
                raise BuildFailed(f"torch cannot load the program: {one_line(error)}") from error
        elif lowered.key == OVERHEAD:
            program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 1, 1, 1),))
        else:
            raise BuildFailed(
                "torch-cuda runs an exported program, and only ONNX was given: lower the network with its program "
                "beside it"
            )
        return CompiledProgram(torch, program)


class CompiledProgram:
    """An exported program on the GPU, with its inputs bound. They are drawn from a fixed seed, never zeros."""

    def __init__(self, torch: Any, program: Any) -> None:
        self._torch = torch
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(each.shape, generator=generator).to("cuda", each.dtype) for each in program.example_inputs[0]
        ]
        self._inputs = [
            each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each for each in inputs
        ]
        passes: Any = import_extra("torch.export.passes", "train")
        self._module = passes.move_to_device_pass(program, "cuda").module().to(memory_format=torch.channels_last)
        self._stream = torch.cuda.Stream()
        self.launch(cuda_graph=False, spin_wait=True)

    def launch(self, *, cuda_graph: bool, spin_wait: bool) -> str:
        """Choose how later runs are launched and waited for; as `latency.measure.Launched` has it."""
        torch = self._torch
        self._events = [
            tuple(torch.cuda.Event(enable_timing=True, blocking=not spin_wait) for _ in "se") for _ in range(2)
        ]
        self._start = self._infer
        try:
            with self._context():
                for _ in range(3):  # cuDNN chooses its kernels, and memory is taken, before anything is captured
                    self._infer()
                self._stream.synchronize()
        except RuntimeError as error:
            raise RunFailed(one_line(error)) from error
        if not cuda_graph:
            return ""
        graph = torch.cuda.CUDAGraph()
        try:
            with self._context(), torch.cuda.graph(graph, stream=self._stream):
                self._infer()
        except RuntimeError as error:
            return f"measured without a CUDA graph, as it cannot be captured: {one_line(error)}"
        self._start = graph.replay
        return ""

    def run(self, count: int) -> list[float]:
        """Run `count` inferences back to back, one enqueued ahead; the time that each took on the GPU, in microseconds.

        Raises:
            RunFailed: torch refuses.
        """
        samples_us: list[float] = []
        try:
            with self._context():
                for i in range(count):
                    start, end = self._events[i % 2]
                    start.record(self._stream)
                    self._start()
                    end.record(self._stream)
                    if i:
                        samples_us.append(self._elapsed_us(i - 1))
                if count:
                    samples_us.append(self._elapsed_us(count - 1))
        except RuntimeError as error:
            raise RunFailed(one_line(error)) from error
        return samples_us

    def _infer(self) -> None:
        self._module(*self._inputs)

    def _elapsed_us(self, i: int) -> float:
        start, end = self._events[i % 2]
        end.synchronize()
        return us_from_ms(start.elapsed_time(end))

    def _context(self) -> ExitStack:
        """Inference on the own stream, with the fastest kernels that cuDNN finds."""
        torch, stack = self._torch, ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.cuda.stream(self._stream))
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True))
        return stack

    def __enter__(self) -> "CompiledProgram":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.synchronize()
        del self._module, self._inputs, self._start, self._events
