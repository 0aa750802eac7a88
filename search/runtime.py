"""Where training runs. The only importer of Fabric."""

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer


class Runtime:
    """The device that trains, in full precision, with the memory layout that convolutions like best and kernels that repeat themselves."""

    def __init__(self) -> None:
        self._fabric = Fabric(accelerator="auto", devices=1)
        torch.backends.cudnn.benchmark = False  # times kernels to choose one: another run could choose, and round, differently
        torch.backends.cudnn.deterministic = True

    def setup(self, network: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[nn.Module, list[Optimizer]]:
        """Move a network to the device; returns what to call in the place of both. The parameters stay the objects that they are."""
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrapped, *wrapped_optimizers = self._fabric.setup(network, *optimizers)
        return wrapped, wrapped_optimizers

    def send(self, x: Tensor) -> Tensor:
        """A tensor on the device; images become channels-last."""
        x = x.to(self._fabric.device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters."""
        self._fabric.backward(loss)
