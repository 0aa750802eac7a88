"""Merge every branch of a network: `fuse(model)` returns a new module that computes the same with fewer operations."""

import copy
import itertools
from collections import Counter

import torch
from torch import nn

from reparam.blocks import RepVGGBlock, fold_norm
from reparam.equivalence import FLOAT64_LIMIT, compare, require
from reparam.errors import ReparamError


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with its branches merged.

    Every `RepVGGBlock` takes its deployed form, and every Conv-BatchNorm pair of a plain `nn.Sequential` becomes one convolution; an
    `nn.Identity` holds the norm's place, so that indices stay. Each rewrite is made in float64, checked there against what it replaces,
    and rounded once to the dtype of the weights. Forward hooks of a replaced block go with it; the argument stays as it was.

    Raises:
        ReparamError: a block cannot be folded, or its folded form differs by more than 1e-10 of the output's scale; it is named.
    """
    root = nn.Sequential(copy.deepcopy(model)).eval()  # a parent for the model itself, which may be a block
    _deploy_blocks(root)
    _fold_pairs(root)
    return root[0]


def _deploy_blocks(root: nn.Module) -> None:
    deployed: dict[nn.Module, nn.Module] = {}  # a block used in two places stays one block
    for path, parent in list(root.named_modules()):
        for name, child in parent._modules.items():
            if isinstance(child, RepVGGBlock):
                if child not in deployed:
                    deployed[child] = _deployed(child, _path(path, name))
                parent._modules[name] = deployed[child]


def _deployed(block: RepVGGBlock, path: str) -> nn.Module:
    exact = copy.deepcopy(block).double()
    try:
        merged = exact.deployed()
    except ReparamError as error:
        raise ReparamError(f"block {path}: {error}") from error
    _require_same(exact, merged, block.dense.conv, path)
    return merged.to(block.dense.conv.weight.dtype)


def _fold_pairs(root: nn.Module) -> None:
    uses = Counter(child for parent in root.modules() for child in parent._modules.values())
    for path, parent in root.named_modules():
        if not (isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward):
            continue
        for (name, first), (norm_name, second) in itertools.pairwise(list(parent._modules.items())):
            match first, second:
                case nn.Conv2d() as conv, nn.BatchNorm2d() as norm if norm.running_mean is not None and uses[conv] == uses[norm] == 1:
                    parent._modules[name] = _folded(conv, norm, _path(path, name))
                    parent._modules[norm_name] = nn.Identity().eval()


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, path: str) -> nn.Conv2d:
    conv64, norm64 = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
    merged = copy.deepcopy(conv64)
    weight, bias = fold_norm(conv64.weight, conv64.bias, norm64)
    merged.weight, merged.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    _require_same(nn.Sequential(conv64, norm64), merged, conv, path)
    return merged.to(conv.weight.dtype)


def _require_same(exact: nn.Module, merged: nn.Module, conv: nn.Conv2d, path: str) -> None:
    # The smallest input on which borders, inner pixels and strides all take part; a generator of its own leaves torch's seed alone.
    sides = [d * (k - 1) + 1 + 2 * s for k, s, d in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)]
    x = torch.randn(2, conv.in_channels, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    require(compare(exact, merged, x.to(conv.weight.device)), FLOAT64_LIMIT, f"block {path} is not the same after merging its branches")


def _path(parent: str, name: str) -> str:
    """Name in the user's model: without the holder's own index."""
    return ".".join(part for part in [*parent.split("."), name] if part).removeprefix("0").removeprefix(".") or "(the model itself)"
