"""Where training runs and how it survives a kill. The only importer of Fabric."""

from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from latency.decoding import decode_json
from latency.errors import one_line
from latency.files import raised_as
from search.errors import SearchError
from search.tensors import read_tensors, write_tensors

T = TypeVar("T", bound=msgspec.Struct)

_STATE = "state"
_OPTIMIZER = "optimizer."


class Runtime:
    """The device that trains, in full precision, with the memory layout that convolutions like best and kernels that repeat themselves."""

    def __init__(self) -> None:
        self._fabric = Fabric(accelerator="auto", devices=1)
        torch.backends.cudnn.benchmark = False  # times kernels to choose one: another run could choose, and round, differently
        torch.backends.cudnn.deterministic = True

    def setup(self, network: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Move a network to the device; returns what to call in the place of both. The parameters stay the objects that they are."""
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrapped, wrapped_optimizer = self._fabric.setup(network, optimizer)
        return wrapped, wrapped_optimizer

    def send(self, x: Tensor) -> Tensor:
        """A tensor on the device; images become channels-last."""
        x = x.to(self._fabric.device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters."""
        self._fabric.backward(loss)


def save_checkpoint(path: Path, state: msgspec.Struct, network: nn.Module, optimizer: Optimizer) -> None:
    """Write everything that training needs to go on: numbers as JSON in the metadata, tensors beside them.

    One file, so that a kill cannot leave the numbers of one epoch with the tensors of another.
    """
    tensors = dict(network.state_dict())
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": slot for name, slot in slots.items() if isinstance(slot, Tensor)}
    write_tensors(path, tensors, {_STATE: msgspec.json.encode(state).decode()})


def read_state(path: Path, kind: type[T]) -> T:
    """The numbers of a checkpoint.

    Raises:
        SearchError: it is damaged.
    """
    with raised_as(SearchError, "run `lathe search` again, into a new directory"):
        return decode_json(read_tensors(path)[1].get(_STATE, ""), kind, path)


def restore(path: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Fill a network and its optimizer with the tensors of a checkpoint, in the memory layout that they have.

    Raises:
        SearchError: it is damaged, or of another network.
    """
    tensors, _ = read_tensors(path)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        for name in [name for name in tensors if name.startswith(_OPTIMIZER)]:
            index, slot = name.removeprefix(_OPTIMIZER).split(".")
            parameter = parameters[int(index)]
            optimizer.state[parameter][slot] = torch.empty_like(parameter).copy_(tensors.pop(name))
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError, IndexError) as error:
        again = "run `lathe search` again, into a new directory"
        raise SearchError(f"{path} does not fit the network ({one_line(error, limit=200)}): {again}") from error
