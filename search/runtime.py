"""Where training runs: devices, processes, number format. The only importer of Fabric."""

import atexit
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from search.errors import SearchError
from search.methods.settings import MemoryFormat, Precision
from search.processes import PeerLost

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Runtime:
    """The devices that train, with kernels that repeat themselves.

    With several devices every process of the run does the same on its own share of each batch, and torch's DistributedDataParallel
    averages the gradients: what comes out is, up to rounding, what one process makes of the whole batch. Not so norms over a batch:
    each process normalises its own share, as is usual, and the running statistics are those of the first one.

    Args:
        devices: number of processes; each is started with its number in LOCAL_RANK, see `search.processes`.
        precision: of forward and backward pass; weights, optimizers and losses stay in FP32.
        memory_format: of images and weights of convolutions; contiguous where the CPU cannot train a network otherwise.

    Raises:
        SearchError: the machine cannot do that.
    """

    def __init__(self, devices: int = 1, precision: Precision = "fp32", memory_format: MemoryFormat = "channels_last") -> None:
        gpus = torch.cuda.device_count()
        if precision == "fp16" and not gpus:
            raise SearchError("--train-precision fp16 needs a GPU, and there is none: give bf16 or fp32")
        if 0 < gpus < devices:
            raise SearchError(f"--devices must be at most the number of GPUs of this machine, {gpus}, found {devices}")
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells every process that joins
        # Supernets leave candidates out from step to step: their parameters then have no gradient.
        strategy = DDPStrategy(find_unused_parameters=True) if devices > 1 else "auto"
        self._fabric = Fabric(accelerator="auto", devices=devices, strategy=strategy, precision=_PRECISIONS[precision])  # pyright: ignore[reportArgumentType]
        self._memory_format = getattr(torch, {"contiguous": "contiguous_format"}.get(memory_format, memory_format))
        if devices > 1:
            with self._peers():
                self._fabric.launch()
            atexit.register(distributed.destroy_process_group)  # else its threads may outlive the interpreter, which aborts
        self._parent = os.getppid()
        self.rank, self.ranks = self._fabric.global_rank, self._fabric.world_size
        torch.backends.cudnn.benchmark = False  # times kernels to choose one: another run could choose, and round, differently
        torch.backends.cudnn.deterministic = True

    def setup(self, network: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[nn.Module, list[Optimizer]]:
        """Move a network to the device; returns what to call in the place of both. The parameters stay the objects that they are."""
        if self._fabric.device.type == "cpu" and _needs_contiguous(network):
            self._memory_format = torch.contiguous_format
        network.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        with self._peers():
            wrapped, *wrapped_optimizers = self._fabric.setup(network, *optimizers)
        return wrapped, wrapped_optimizers

    def frozen(self, network: nn.Module) -> nn.Module:
        """A network on the device, in evaluation mode, whose weights are not trained."""
        return self._fabric.to_device(network.to(memory_format=self._memory_format)).eval().requires_grad_(False)  # type: ignore[call-overload]

    def send(self, batch: Any) -> Any:
        """A tensor, or a tree of tensors, on the device; images get the memory format."""

        def sent(x: Tensor) -> Tensor:
            x = x.to(self._fabric.device)
            return x.contiguous(memory_format=self._memory_format) if x.ndim == 4 else x

        return tree_map(sent, batch)

    def share(self, batch: Any) -> Any:
        """What this process has to do of a batch: a tensor, or a tree of tensors, that have the samples along their first dimension.

        Raises:
            SearchError: the batch cannot be divided equally among the processes.
        """

        def part(x: Tensor) -> Tensor:
            if len(x) % self.ranks:
                raise SearchError(f"a batch of {len(x)} samples cannot be divided among {self.ranks} devices: give another --batch")
            return x.chunk(self.ranks)[self.rank]

        return tree_map(part, batch)

    def forward(self, network: nn.Module, inputs: Tensor) -> Any:
        """What a network makes of inputs of this process.

        Raises:
            PeerLost: another process of the run has ended.
        """
        with self._peers():
            return network(inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters, averaged over all processes.

        Raises:
            PeerLost: another process of the run has ended.
        """
        with self._peers():
            self._fabric.backward(loss)

    def total(self, *values: float | int) -> list[float]:
        """Sums over all processes.

        Raises:
            PeerLost: another process of the run has ended, or the one that started them all.
        """
        if self.ranks == 1:
            return [float(value) for value in values]
        if os.getppid() != self._parent:
            raise PeerLost("what started the processes of the run has ended: the same command goes on")
        found = torch.tensor(values, dtype=torch.float64, device=self._fabric.device)
        with self._peers():
            distributed.all_reduce(found)
        return found.tolist()

    def wait(self) -> None:
        """Go on when all processes are here.

        Raises:
            PeerLost: another process of the run has ended.
        """
        with self._peers():
            self._fabric.barrier()

    def agree(self, network: nn.Module) -> None:
        """Give every process the running statistics of the first one.

        Raises:
            PeerLost: another process of the run has ended.
        """
        if self.ranks > 1:
            with self._peers():
                for buffer in network.buffers():
                    distributed.broadcast(buffer, 0)

    def state_dict(self) -> dict[str, Any]:
        """What mixed precision needs to go on: the scale of the loss."""
        return dict(self._fabric.strategy.precision.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._fabric.strategy.precision.load_state_dict(dict(state))

    @contextlib.contextmanager
    def _peers(self) -> Iterator[None]:
        """Tell the end of another process by the error that gloo or NCCL has then."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
                raise
            raise PeerLost("another process of the run has ended: the same command goes on") from error


def _needs_contiguous(network: nn.Module) -> bool:
    """Whether training in channels_last corrupts memory on this CPU.

    Without AVX-512 oneDNN of torch 2.11 to 2.13 writes beyond its buffers in the weight gradient of strided 1x1 convolutions of fewer than 8
    channels, such as the first pointwise branch of RepVGG.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(conv.kernel_size == (1, 1) and max(conv.stride) > 1 and conv.in_channels < 8 for conv in convolutions)
