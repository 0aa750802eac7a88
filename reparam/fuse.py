"""Merge every branch and norm of a network: `fuse(model)` returns a new module that computes the same with fewer operations."""

import copy
import itertools
import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import fuse_bn_conv, fuse_conv_bn, fuse_transposed_conv_bn
from reparam.blocks import Block, affine_of
from reparam.equivalence import FLOAT64_LIMIT, compare, require
from reparam.errors import ReparamError
from reparam.graph import trace

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with its branches merged.

    Every `Block` takes its deployed form. Then every batch norm that alone reads a convolution, a transposed convolution or a linear layer
    goes into it, and one in front of a convolution where that is exact: where the convolution does not pad with zeros. An `nn.Identity`
    holds the norm's place, so that names stay. Pairs are found in the graph of `forward` that torch.fx traces with default values for
    optional arguments; in a model that cannot be traced, only neighbours in a plain `nn.Sequential` are.

    A module that is called in several places is folded if every call is in such a pair. What has hooks or parametrisations, norms without
    running statistics, and a norm behind a `ChannelMask` stay as they are. A `BatchNorm1d` behind a linear layer is taken to read vectors,
    not sequences.

    Each rewrite is made in float64, checked there against what it replaces, and rounded once to the dtype of the weights. Hooks of a
    replaced block go with it; the argument stays as it was.

    Raises:
        ReparamError: a block cannot be folded, or a folded form differs by more than 1e-10 of the output's scale; it is named.
    """
    root = nn.Sequential(copy.deepcopy(model)).eval()  # a parent for the model itself, which may be a block
    _deploy_blocks(root)
    links = _links(root[0])
    for norm_first in (False, True):
        _fold_pairs(root[0], links, norm_first=norm_first)
    return root[0]


def _deploy_blocks(root: nn.Module) -> None:
    deployed: dict[nn.Module, nn.Module] = {}  # a block used in two places stays one block
    for path, parent in list(root.named_modules()):
        for name, child in parent._modules.items():
            if isinstance(child, Block):
                if child not in deployed:
                    deployed[child] = _deployed(child, _path(path, name))
                parent._modules[name] = deployed[child]


def _deployed(block: Block, path: str) -> nn.Module:
    exact = _without_hooks(block).double()
    try:
        merged = exact.deployed()
    except ReparamError as error:
        raise ReparamError(f"block {path}: {error}") from error
    weight = next(block.parameters())
    _require_same(exact, merged, block.probe_shape(), weight.device, f"block {path}")
    return merged.to(weight.dtype)


class _Links:
    """Which module's output is read by which other module alone."""

    def __init__(self) -> None:
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        """one for each such place, in the order of the calls"""
        self.calls: Counter[nn.Module] = Counter()
        """how often each module is called"""
        self.kept: set[nn.Module] = set()
        """modules whose tensors are read in other ways than by calling them"""


def _links(model: nn.Module) -> _Links:
    # Hooks would be called with what torch.fx traces with, so a twin without them is traced; it shares all tensors.
    twin = _without_hooks(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    try:
        graph = trace(twin)
    except (ReparamError, LookupError, AssertionError):  # what a network's own code may make of a stand-in for a tensor
        return _sequential_links(model)
    links = _Links()
    modules = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    read = {id(operator.attrgetter(str(node.target))(twin)) for node in graph.nodes if node.op == "get_attr"}
    for node, module in modules.items():
        links.calls[module] += 1
        links.kept.update(inner for inner in module.modules() if inner is not module)
        if any(id(tensor) in read for tensor in (*module.parameters(), *module.buffers())):
            links.kept.add(module)
        readers = list(node.users)
        if len(readers) == 1 and readers[0] in modules and readers[0].all_input_nodes == [node]:
            links.pairs.append((module, modules[readers[0]]))
    return links


def _sequential_links(model: nn.Module) -> _Links:
    links = _Links()
    for parent in model.modules():
        children = [child for child in parent._modules.values() if child is not None]
        links.calls.update(children)
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            links.pairs.extend(itertools.pairwise(children))
    return links


def _fold_pairs(model: nn.Module, links: _Links, *, norm_first: bool) -> None:
    there = set(model.modules()) - links.kept
    pairs = [pair[::-1] if norm_first else pair for pair in links.pairs if there.issuperset(pair)]
    pairs = [(layer, norm) for layer, norm in pairs if _fits(layer, norm, norm_first=norm_first)]
    found = len(pairs) + 1
    while len(pairs) < found:  # a pair that must stay keeps the other pairs of its modules, too
        found = len(pairs)
        layers, norms, partners = (Counter(group) for group in ([a for a, _ in pairs], [b for _, b in pairs], [a for a, _ in set(pairs)]))
        pairs = [(a, b) for a, b in pairs if layers[a] == links.calls[a] and norms[b] == links.calls[b] and partners[a] == 1]
    names = {module: name for name, module in model.named_modules()}
    for layer, norm in dict.fromkeys(pairs):
        _fold(layer, norm, names[layer], norm_first=norm_first)
    gone = {norm for _, norm in pairs}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in gone:
                parent._modules[name] = nn.Identity().eval()


def _fits(layer: nn.Module, norm: Any, *, norm_first: bool) -> bool:
    """Whether the two are of types that fold exactly; a subclass may compute something else."""
    if type(norm) not in _NORMS or norm.running_mean is None or any(getattr(m, hooks) for m in (layer, norm) for hooks in _HOOKS):
        return False
    if isinstance(layer, nn.Linear):
        features = layer.in_features if norm_first else layer.out_features
        return type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d and norm.num_features == features
    if norm_first:
        return type(layer) in _CONVS and (_border(layer) == "none" or not affine_of(norm)[1].any())
    return type(layer) in (*_CONVS, *_TRANSPOSED)


def _border(layer: Any) -> Any:
    """What surrounds the layer's input, by the words of `algebra`."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return "none"
    return "zeros" if layer.padding == "same" or any(layer.padding) else "none"


def _fold(layer: Any, norm: Any, name: str, *, norm_first: bool) -> None:
    """Put the norm into the layer, in place."""
    exact, norm = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
    scale, shift = affine_of(norm)
    groups = getattr(layer, "groups", 1)
    if norm_first:
        weight, bias = fuse_bn_conv(exact.weight, exact.bias, scale, shift, groups=groups, border=_border(layer))
    elif isinstance(layer, _TRANSPOSED):
        weight, bias = fuse_transposed_conv_bn(exact.weight, exact.bias, scale, shift, groups=groups)
    else:
        weight, bias = fuse_conv_bn(exact.weight, exact.bias, scale, shift)
    merged = copy.deepcopy(exact)
    merged.weight, merged.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    pair = nn.Sequential(norm, exact) if norm_first else nn.Sequential(exact, norm)
    _require_same(pair, merged, _probe_shape(layer), layer.weight.device, f"layer {name}")
    trained = layer.weight.requires_grad
    layer.weight, layer.bias = (nn.Parameter(tensor.detach().to(layer.weight.dtype), trained) for tensor in (merged.weight, merged.bias))


def _probe_shape(layer: Any) -> tuple[int, ...]:
    """Of the smallest input on which borders, inner pixels and strides all take part."""
    if isinstance(layer, nn.Linear):
        return (layer.in_features,)
    padding = (0,) if isinstance(layer.padding, str) else layer.padding
    sides = (d * (k - 1) + 1 + 2 * s for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))
    return layer.in_channels, *(max(side, *(2 * cut for cut in padding)) + 1 for side in sides)  # a transposed one cuts its padding off


def _require_same(exact: nn.Module, merged: nn.Module, shape: tuple[int, ...], device: torch.device, what: str) -> None:
    # A generator of its own leaves torch's seed alone.
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    require(compare(exact, merged, x), FLOAT64_LIMIT, f"{what} is not the same after merging")


def _without_hooks(module: nn.Module, shared: dict[int, Tensor] | None = None) -> Any:
    """A copy that calls nobody; `shared` are tensors, by their id, that need no copy."""
    twin = copy.deepcopy(module, shared)
    for part in twin.modules():
        for hooks in _HOOKS:
            getattr(part, hooks).clear()
    return twin


def _path(parent: str, name: str) -> str:
    """Name in the user's model: without the holder's own index."""
    return ".".join(part for part in [*parent.split("."), name] if part).removeprefix("0").removeprefix(".") or "(the model itself)"
