"""Merge the linear branches of a network into an equivalent network with fewer operations."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.blocks import Block, ChannelMask
from reparam.branches import Branches, Merge, MergeChoice, unmerged
from reparam.equivalence import FLOAT64_LIMIT, arithmetic, compare, difference_of, require_within
from reparam.errors import ReparamError
from reparam.exported import RUN_ERRORS, first_line
from reparam.graph import NetworkGraph, TracedCall, has_hooks, is_norm, operator_of, read_network, twin_of
from reparam.masking import attach_mask, detach_masks
from reparam.modules import child_modules
from reparam.regions import HookedModuleError
from reparam.rewrite import Rewritten, rewrite
from reparam.structure import Arguments, Example, arguments_of, map_tensors, tensor_leaves


@dataclass(frozen=True, kw_only=True)
class FuseReport:
    """What was merged and what was left."""

    blocks: tuple[str, ...]
    """names of the blocks that were replaced by their deployed forms, before anything else"""
    merged: tuple[str, ...]
    """one line per merge"""
    left: tuple[str, ...]
    """one line per operator that was not merged, with the reason"""
    graphs: tuple[str, ...]
    """names of the modules that were replaced by their graphs, because their code computed merged operators; "" is the
    network itself"""
    layers: tuple[int, int]
    """number of convolutions and linear layers, before and after"""
    norms: tuple[int, int]
    """number of batch norms, before and after"""

    @property
    def summary(self) -> str:
        """The report in one line."""
        counts = f"layers {self.layers[0]} -> {self.layers[1]}, norms {self.norms[0]} -> {self.norms[1]}"
        blocks = f"blocks deployed: {len(self.blocks)}; " if self.blocks else ""
        left = f", {len(self.left)} left" if self.left else ""
        return f"{blocks}{counts}{left}{'; the network runs by its graph' if '' in self.graphs else ''}"


def fuse(model: nn.Module, example_input: Example, /, **keywords: object) -> nn.Module:
    """Do the same as `fuse_with_report`, without the report."""
    return fuse_with_report(model, example_input, **keywords)[0]


def fold_norms(model: nn.Module, example_input: Example, /, **keywords: object) -> nn.Module:
    """Fold only norms, so that every layer stays separate and can be compared with the trained network's."""
    return _fused(model, example_input, keywords, norms_only=True)[0].rounded()


def fuse_exactly(model: nn.Module, example_input: Example, /, **keywords: object) -> tuple[nn.Module, FuseReport]:
    """Do the same as `fuse_with_report`, but leave the weights in float64, not rounded to their original type.

    Graphs in the result name the types of the original network. To run it, convert it to that type with `.to`, or run
    it in float64 within `equivalence.arithmetic`.
    """
    rewritten, report = _fused(model, example_input, keywords)
    return rewritten.module.double(), report


def fuse_with_report(model: nn.Module, example_input: Example, /, **keywords: object) -> tuple[nn.Module, FuseReport]:
    """Return a copy in evaluation mode with its linear branches merged, and a report.

    Each `Block` is replaced by its deployed form. Then every value in the network's graph that equals one convolution
    or one linear layer of an earlier value becomes that layer. This merges norms before and after layers, scalings,
    identities, average pooling, sums of branches, and 1x1 convolutions next to others, if the result is exact on every
    pixel and needs no more multiply-accumulates or weights. Nothing is merged across a `ChannelMask` or a module with
    hooks.

    The network's own modules stay, with new weights and an `nn.Identity` in place of each norm. A module whose own code
    computes a merged operator, such as the sum of branches, is replaced by its graph.

    Args:
        model: a network that torch.export can read; it stays unchanged.
        example_input: an input of the network's shape, or a tuple of its positional arguments.
        keywords: its keyword arguments.

    Raises:
        ReparamError: the network cannot be read, a block cannot be folded, or the result differs by more than 1e-10 of
            the output's scale in float64 on random inputs.
    """
    rewritten, report = _fused(model, example_input, keywords)
    return rewritten.rounded(), report


def _fused(
    model: nn.Module, example_input: Example, keywords: dict[str, Any], *, norms_only: bool = False
) -> tuple[Rewritten, FuseReport]:
    args = arguments_of(example_input)
    twin_of(model)  # raises if the model cannot be copied
    root = nn.Sequential(copy.deepcopy(model)).eval()  # a parent for the model itself, which may be a block
    deployed = dict(_deploy_blocks(root))
    network = read_network(_with_types(root, deployed)[0], args, keywords, exact=root[0])
    watched = {
        call for chain in network.calls.values() for call in chain if has_hooks(network.model.get_submodule(call.path))
    }
    branches = Branches(network, _opaque(network), _seen_by_hooks(network, watched))
    skipped: set[fx.Node] = set()
    while True:
        choice = MergeChoice(branches, skipped, norms_only=norms_only)
        try:
            rewritten = _proven(network, choice.merges, args, keywords)
        except HookedModuleError as error:
            skipped.update(error.nodes)
        else:
            return rewritten, _report(network, branches, choice, [_path(name) for name in deployed], rewritten.graphs)


def _proven(network: NetworkGraph, merges: list[Merge], args: Arguments, keywords: dict[str, Any]) -> Rewritten:
    """Rewrite the network and compare it with the original; use its graph if its code needs a merged operator."""
    generator = torch.Generator().manual_seed(0)  # leaves torch's global seed alone

    def drawn(x: Tensor) -> Tensor:
        return (
            torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) if x.is_floating_point() else x
        )

    args, keywords = map_tensors((args, keywords), drawn)
    reference = twin_of(network.model)
    for whole in (False, True):
        rewritten = rewrite(network, merges, whole=whole)
        try:
            difference = compare(reference, twin_of(rewritten.module), args, keywords=keywords)
        except RUN_ERRORS as error:
            if whole:
                raise ReparamError(f"the merged network cannot be run: {first_line(error)}") from error
            continue
        if difference.within(FLOAT64_LIMIT):
            return rewritten
        if whole:
            where = _first_difference(network, rewritten, (args, keywords))
            require_within(difference, FLOAT64_LIMIT, f"the network is not the same after merging{where}")
    raise AssertionError("unreachable: the whole graph is the same or an error")


def _first_difference(network: NetworkGraph, rewritten: Rewritten, arguments: object) -> str:
    """Describe the first value that differs between the network's graph and the rewritten graph; "" for none."""
    assert rewritten.values, "the network itself is a graph"
    merged, names = rewritten.values
    tensors = tensor_leaves(arguments)
    before = fx.Interpreter(nn.Module(), garbage_collect_values=False, graph=network.graph)
    after = fx.Interpreter(copy.deepcopy(merged).double(), garbage_collect_values=False)
    inputs = iter(tensors)
    with torch.no_grad(), arithmetic(torch.float64):
        placeholders = [node for node in network.graph.nodes if node.op == "placeholder"]
        before.run(*(network.constant(node) if network.is_constant(node) else next(inputs) for node in placeholders))
        after.run(*tensors)
    rewritten_values = {node.name: value for node, value in after.env.items()}
    for node, value in before.env.items():
        other = rewritten_values.get(names.get(node, ""))
        if (
            isinstance(value, Tensor)
            and isinstance(other, Tensor)
            and not difference_of([value], [other]).within(FLOAT64_LIMIT)
        ):
            return f", first at {node.name} ({operator_of(node)} of {network.where(node)})"
    return ""


def _opaque(network: NetworkGraph) -> set[fx.Node]:
    """Return the nodes of masks; they stay for `squeeze`."""
    return {
        node
        for node, chain in network.calls.items()
        if any(isinstance(network.model.get_submodule(call.path), ChannelMask) for call in chain)
    }


def _seen_by_hooks(network: NetworkGraph, watched: set[TracedCall]) -> set[fx.Node]:
    """Return the inputs and outputs of modules with hooks."""
    seen: set[fx.Node] = set()
    for call in watched:
        inside = set(call.nodes)
        seen.update(x for node in inside for x in node.all_input_nodes if x not in inside)
        seen.update(node for node in inside if any(user not in inside for user in node.users))
    return {node for node in seen if not network.is_constant(node)}


def _report(
    network: NetworkGraph, branches: Branches, choice: MergeChoice, deployed: list[str], graphs: tuple[str, ...]
) -> FuseReport:
    where = network.where
    merged: list[str] = []
    for merge in choice.merges:
        parts = sorted(merge.operators, key=[*network.graph.nodes].index)
        merged.append(
            f"{where(merge.host)}: one layer for {', '.join(f'{operator_of(node)} {where(node)}' for node in parts)}"
        )
    gone = {node for merge in choice.merges for node in merge.form.absorbed}
    norms = [node for node in network.graph.nodes if is_norm(node) and not network.is_constant(node)]
    layers = set(branches.layers)
    return FuseReport(
        blocks=tuple(deployed),
        merged=tuple(merged),
        left=tuple(f"{where(node)}: {why}" for node, why in unmerged(choice, branches)),
        graphs=graphs,
        layers=(len(layers), len(layers - gone) + len(choice.merges)),
        norms=(len(norms), len([node for node in norms if node not in gone])),
    )


# --- blocks ---


def _deploy_blocks(root: nn.Module) -> Iterator[tuple[str, torch.dtype]]:
    """Replace every block by its deployed form in float64; yield its name and original type."""
    deployed: dict[nn.Module, nn.Module] = {}  # a block used in two places stays shared
    for child in child_modules(root):
        block = child.module
        if not isinstance(block, Block):
            continue
        if block not in deployed:
            yield child.path, next(block.parameters()).dtype
            masks = detach_masks(block)
            deployed[block] = _deployed(block, _path(child.path))
            for masked in masks:
                attach_mask(deployed[block], masked)
        child.replace(deployed[block])


def _deployed(block: Block, path: str) -> nn.Module:
    exact = copy.deepcopy(twin_of(block)).double()
    assert isinstance(exact, Block)
    try:
        merged = exact.deployed()
    except ReparamError as error:
        raise ReparamError(f"block {path}: {error}") from error
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *block.probe_shape(), dtype=torch.float64, generator=generator).to(
        next(block.parameters()).device
    )
    require_within(compare(exact, merged, x), FLOAT64_LIMIT, f"block {path} is not the same after merging")
    return merged


def _with_types(model: nn.Sequential, types: Mapping[str, torch.dtype]) -> nn.Sequential:
    """Return a twin with the modules of the given names converted to the given types."""
    twin = twin_of(model)
    assert isinstance(twin, nn.Sequential)
    for path, dtype in types.items():
        for part in twin.get_submodule(path).modules():  # new tensors: the twin shares the old ones
            for name, weight in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, buffer.to(dtype) if buffer.is_floating_point() else buffer)
    return twin


def _path(name: str) -> str:
    """Return the name in the user's model, without the index in the holder."""
    return name.removeprefix("0").removeprefix(".") or "(the model itself)"
