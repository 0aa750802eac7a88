"""Devices, processes and precision of training. The only importer of Fabric."""

import atexit
import contextlib
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from reparam.typed_torch import to_list
from search.errors import SearchError
from search.methods.settings import MemoryFormat, Precision
from search.processes import PeerLost
from search.tensors import Tree

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class TrainingRuntime:
    """The training devices, with deterministic kernels.

    With several devices, every process handles its share of each batch, and torch's DistributedDataParallel averages
    the gradients. Up to rounding, the result equals that of one process on the whole batch, except for batch norms:
    each process normalises its own share, as usual, and the running statistics are those of the first process.

    Args:
        devices: number of processes; each is started with its index in LOCAL_RANK, see `search.processes`.
        precision: precision of forward and backward pass; weights, optimizers and losses stay in FP32.
        memory_format: memory format of images and convolution weights; contiguous if the CPU cannot train the network
            otherwise.

    Raises:
        SearchError: the machine does not support the request.
    """

    def __init__(
        self, devices: int = 1, precision: Precision = "fp32", memory_format: MemoryFormat = "channels_last"
    ) -> None:
        gpus = torch.cuda.device_count()
        if precision == "fp16" and not gpus:
            raise SearchError("--train-precision fp16 needs a GPU, and there is none: give bf16 or fp32")
        if 0 < gpus < devices:
            raise SearchError(f"--devices must be at most the number of GPUs of this machine, {gpus}, found {devices}")
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs every joining process
        # Supernets skip candidates in some steps, whose parameters then have no gradient.
        strategy = DDPStrategy(find_unused_parameters=True) if devices > 1 else "auto"
        self._fabric = Fabric(accelerator="auto", devices=devices, strategy=strategy, precision=_PRECISIONS[precision])  # pyright: ignore[reportArgumentType]
        self._memory_format = getattr(torch, {"contiguous": "contiguous_format"}.get(memory_format, memory_format))
        if devices > 1:
            with self._peers():
                self._fabric.launch()
            atexit.register(
                distributed.destroy_process_group
            )  # otherwise its threads may outlive the interpreter and abort it
        self._parent = os.getppid()
        self.rank, self.ranks = self._fabric.global_rank, self._fabric.world_size
        torch.backends.cudnn.benchmark = False  # it selects kernels by timing, so another run could round differently
        torch.backends.cudnn.deterministic = True

    def setup(self, network: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[nn.Module, list[Optimizer]]:
        """Move a network to the device; return wrappers to call instead of both.

        The parameter objects stay the same.
        """
        if self._fabric.device.type == "cpu" and _needs_contiguous(network):
            self._memory_format = torch.contiguous_format
        network.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        with self._peers():
            wrapped, *wrapped_optimizers = self._fabric.setup(network, *optimizers)
        return wrapped, wrapped_optimizers

    def frozen(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, in evaluation mode and without gradients."""
        return self._fabric.to_device(network.to(memory_format=self._memory_format)).eval().requires_grad_(False)  # type: ignore[call-overload]

    def send(self, batch: Tree) -> Tree:
        """Move a tensor, or a tree of tensors, to the device; images get the memory format."""

        def sent(x: Tensor) -> Tensor:
            x = x.to(self._fabric.device)
            return x.contiguous(memory_format=self._memory_format) if x.ndim == 4 else x

        return tree_map(sent, batch)

    def share(self, batch: Tree) -> Tree:
        """Return this process's share of a batch.

        A tensor, or a tree of tensors, with samples along the first dimension.

        Raises:
            SearchError: the batch cannot be divided equally among the processes.
        """

        def part(x: Tensor) -> Tensor:
            if len(x) % self.ranks:
                raise SearchError(
                    f"a batch of {len(x)} samples cannot be divided among {self.ranks} devices: give another --batch"
                )
            return x.chunk(self.ranks)[self.rank]

        return tree_map(part, batch)

    def forward(self, network: nn.Module, inputs: Tensor) -> Tree:
        """Run a network on inputs of this process.

        Raises:
            PeerLost: another process of the run has ended.
        """
        with self._peers():
            return network(inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss, averaged over all processes.

        Raises:
            PeerLost: another process of the run has ended.
        """
        with self._peers():
            self._fabric.backward(loss)

    def total(self, *values: float | int) -> list[float]:
        """Return the sum of each value over all processes.

        Raises:
            PeerLost: another process of the run, or their launcher, has ended.
        """
        if self.ranks == 1:
            return [float(value) for value in values]
        if os.getppid() != self._parent:
            raise PeerLost("what started the processes of the run has ended: the same command goes on")
        totals = torch.tensor(values, dtype=torch.float64, device=self._fabric.device)
        with self._peers():
            distributed.all_reduce(totals)  # pyright: ignore[reportUnknownMemberType]
        sums: list[float] = to_list(totals)
        return sums

    def wait(self) -> None:
        """Wait until all processes get here.

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
        """Return the state of mixed precision: the loss scale."""
        return dict(self._fabric.strategy.precision.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self._fabric.strategy.precision.load_state_dict(dict(state))

    @contextlib.contextmanager
    def _peers(self) -> Generator[None, None, None]:
        """Report the end of another process, which gloo or NCCL signal by an error."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
                raise
            raise PeerLost("another process of the run has ended: the same command goes on") from error


def _needs_contiguous(network: nn.Module) -> bool:
    """Return whether training in channels_last corrupts memory on this CPU.

    Without AVX-512, oneDNN of torch 2.11 to 2.13 writes beyond its buffers in the weight gradient of strided 1x1
    convolutions with fewer than 8 channels, such as the first pointwise branch of RepVGG.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(conv.kernel_size == (1, 1) and max(conv.stride) > 1 and conv.in_channels < 8 for conv in convolutions)
