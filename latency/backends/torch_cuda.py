"""Torch on the GPU: exported programs at half precision, channels last, replayed as CUDA graphs.

Torch is imported on first use only.
"""

import io
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any, Literal, TypeAlias

from latency.backends.cuda import gpu, run_ahead
from latency.device import Runtime
from latency.errors import BuildFailed, DeviceUnavailable, RunFailed, import_extra, one_line
from latency.lowered import OVERHEAD, Lowered
from latency.monitor import Nvml
from latency.units import us_from_ms

TorchObject: TypeAlias = Any
"""An object of torch, which is imported on first use only."""


class TorchCuda:
    """Backend that runs `Lowered.program`; it cannot run ONNX alone.

    `torch.export.load` unpickles, so a program must come from this process's own lowering or from a source whose code
    one would run.

    Args:
        precision: precision of the programs, whose weights have it already.

    Raises:
        MissingExtra: torch or nvidia-ml-py is not installed.
        DeviceUnavailable: torch finds no GPU.
    """

    name = "torch-cuda"
    clock = staticmethod(time.perf_counter_ns)

    def __init__(self, *, precision: Literal["fp32", "fp16"] = "fp16") -> None:
        torch = self._torch = import_extra("torch", "train")
        if not torch.cuda.is_available():
            raise DeviceUnavailable(
                f"torch {torch.__version__} finds no GPU: look at `nvidia-smi`, install a torch built for CUDA, or "
                "measure on the CPU with --backend onnxruntime"
            )
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.precision: Literal["fp32", "fp16"] = precision
        self.device = gpu(
            "tensorrt",
            name=properties.name,
            memory_bytes=properties.total_memory,
            capability=(properties.major, properties.minor),
        )
        self.runtime = Runtime(name=self.name, version=torch.__version__)
        self.settings = {"cudnn": str(torch.backends.cudnn.version()), "memory_format": "channels_last"}
        self.monitor = Nvml(
            f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
        )

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
                "torch-cuda runs an exported program, and only ONNX was given: lower the network together with its "
                "program"
            )
        return CompiledProgram(torch, program)


class CompiledProgram:
    """An exported program on the GPU, with its inputs bound: drawn from a fixed seed, never zero."""

    def __init__(self, torch: ModuleType, program: TorchObject) -> None:
        self._torch = torch
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(example.shape, generator=generator).to("cuda", example.dtype)
            for example in program.example_inputs[0]
        ]
        self._inputs = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
        passes = import_extra("torch.export.passes", "train")
        self._module = passes.move_to_device_pass(program, "cuda").module().to(memory_format=torch.channels_last)
        self._stream = torch.cuda.Stream()
        self.launch(cuda_graph=False, spin_wait=True)

    def launch(self, *, cuda_graph: bool, spin_wait: bool) -> str:
        """Choose how later runs are launched and waited for, see `latency.measure.Launched`."""
        torch = self._torch

        def event() -> TorchObject:
            return torch.cuda.Event(enable_timing=True, blocking=not spin_wait)

        self._events = [(event(), event()) for _ in range(2)]
        self._launch: Callable[[], None] = self._infer
        try:
            with self._context():
                for _ in range(3):  # cuDNN must choose its kernels, and memory be allocated, before the capture
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
        self._launch = graph.replay
        return ""

    def run(self, count: int) -> list[float]:
        """Run `count` inferences back to back; return the time of each on the GPU in microseconds.

        Raises:
            RunFailed: torch refuses an inference.
        """
        try:
            with self._context():
                return run_ahead(count, self._timed_launch, self._elapsed_us)
        except RuntimeError as error:
            raise RunFailed(one_line(error)) from error

    def _infer(self) -> None:
        self._module(*self._inputs)

    def _timed_launch(self, slot: int) -> None:
        start, end = self._events[slot]
        start.record(self._stream)
        self._launch()
        end.record(self._stream)

    def _elapsed_us(self, slot: int) -> float:
        start, end = self._events[slot]
        end.synchronize()
        return us_from_ms(start.elapsed_time(end))

    def _context(self) -> ExitStack:
        """Return a context for inference on the program's own stream, with the fastest of cuDNN's kernels."""
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
        del self._module, self._inputs, self._launch, self._events
