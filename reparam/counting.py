"""Count parameters and multiply-accumulates of a network; every report uses this definition."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.structure import Example, arguments_of

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Size of a network."""

    params: int
    """parameters, including scale and shift of norms, excluding running statistics"""
    macs: int
    """multiply-accumulates of convolutions and linear layers, per sample"""


@torch.no_grad()
def count(model: nn.Module, example_input: Example) -> Counts:
    """Count a network by running a copy of it once.

    Masked channels count: the network computes them before it zeroes them.

    Args:
        model: the network.
        example_input: a batch of any size, or a tuple of arguments whose first is a batch.
    """
    macs = 0

    def add(module: nn.Module, _args: object, output: Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs += output.numel() * math.prod(weight.shape[1:])  # each output element is a dot product with one filter

    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        if isinstance(module, _COUNTED):
            module.register_forward_hook(add)
    inputs = arguments_of(example_input)
    twin(*inputs)
    batch = next((value.shape[0] for value in inputs[:1] if isinstance(value, Tensor) and value.ndim), 1)
    return Counts(params=sum(p.numel() for p in twin.parameters()), macs=macs // batch)
