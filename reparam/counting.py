"""Parameters and multiply-accumulates of a network, by one definition for every report."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Size of a network."""

    params: int
    """parameters, with the scale and shift of norms, without running statistics"""
    macs: int
    """multiply-accumulates of convolutions and linear layers, for one sample"""


@torch.no_grad()
def count(model: nn.Module, example_input: Tensor | tuple[Any, ...]) -> Counts:
    """Count a network by running a copy of it once; `example_input` is a batch of any size, or a tuple of arguments, a batch the first.

    A masked network is counted whole: it computes the channels that it then sets to zero.
    """
    macs = 0

    def add(module: nn.Module, _args: Any, output: Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, Tensor)
        macs += output.numel() * math.prod(weight.shape[1:])  # every output element is a product over one filter

    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        if isinstance(module, _COUNTED):
            module.register_forward_hook(add)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    twin(*inputs)
    batch = next((value.shape[0] for value in inputs[:1] if isinstance(value, Tensor) and value.ndim), 1)
    return Counts(params=sum(p.numel() for p in twin.parameters()), macs=macs // batch)
