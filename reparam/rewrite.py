"""Apply merges to the user's module: set new weights if its code still fits, else replace it by its graph."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from reparam.branches import Merge
from reparam.graph import NetworkGraph, TracedCall, args_of, with_defaults
from reparam.masking import Masks, attach_mask, detach_masks
from reparam.modules import named_modules
from reparam.regions import Region, only_readers, replace_module, replaceable_call, tensor_of

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


@dataclass(frozen=True)
class Rewritten:
    """A rewritten network."""

    module: nn.Module
    graphs: tuple[str, ...]
    """names of the modules that were replaced by their graphs; "" is the network itself"""
    layers: tuple[tuple[nn.Module, torch.dtype], ...]
    """layers with float64 weights, and their original types"""
    values: tuple[fx.GraphModule, Mapping[fx.Node, str]] | None = None
    """if the network itself is a graph: that graph, and the name of its node for each value of the original network"""

    def rounded(self) -> nn.Module:
        """Convert every weight to its original type and return the module."""
        for layer, dtype in self.layers:
            layer.to(dtype)
        return self.module


def rewrite(network: NetworkGraph, merges: Sequence[Merge], *, whole: bool = False) -> Rewritten:
    """Return a copy of the network with the merges applied and the merged layers in float64.

    In a chain of operators, the layer gets new weights and every other module becomes an `nn.Identity`. A module whose
    own code computes a merged operator, such as the sum of branches, becomes a graph of its remaining modules and the
    merged layer.

    Args:
        network: the network as read.
        merges: the merges to apply.
        whole: replace the whole network by a graph.

    Raises:
        HookedModuleError: a module with hooks would be removed.
    """
    return _Rewriter(network, merges, whole=whole).result()


class _Rewriter:
    def __init__(self, network: NetworkGraph, merges: Sequence[Merge], *, whole: bool) -> None:
        self.network, self.merges, self.whole = network, merges, whole
        self.model: nn.Module = copy.deepcopy(network.model)
        self.chains = [merge for merge in merges if merge.chain]
        self.gone = {node for merge in merges for node in merge.form.absorbed} - {merge.host for merge in self.chains}
        self.gone -= {merge.node for merge in merges if not merge.chain} | {
            node for merge in merges for node in merge.form.moves
        }
        self.hosts = {merge.host: merge for merge in self.chains}
        self.regions: dict[TracedCall, list[Merge]] = {}
        self.in_place: list[Merge] = []
        self.layers = list(self._more_exact())
        modules = dict(named_modules(self.model))
        self.masked = {
            node
            for node, chain in network.calls.items()
            if any(isinstance(modules[call.path], Masks) for call in chain)
        }
        """nodes computed by masks attached to modules"""
        self.idle: set[str] = set()
        """names of modules that become identities"""

    def _more_exact(self) -> Iterator[tuple[nn.Module, torch.dtype]]:
        """Yield modules whose weights are more precise than the network that was read, with the type to round to."""
        for node, name in self.network.names.items():
            owner = self.model.get_submodule(name.rpartition(".")[0]) if name else self.model
            tensor = getattr(owner, name.rpartition(".")[2], None)
            if isinstance(tensor, Tensor) and tensor.dtype != node.meta["val"].dtype:
                yield owner, node.meta["val"].dtype

    def result(self) -> Rewritten:
        for merge in self.merges:
            self._plan(merge)
        for merge in self.in_place:
            self._update(merge)
        for path in sorted(self.idle):
            masks, idle = detach_masks(self.model.get_submodule(path)), nn.Identity()
            self.model = replace_module(self.model, path, idle)
            for masked in masks:
                attach_mask(idle, masked)
        values = None
        for call in sorted(self.regions, key=lambda call: -len(call.path)):
            region = _Merged(self, call)
            self.model = replace_module(self.model, call.path, region.module())
            if self.whole:
                inner = {node for merge in self.merges for node in merge.form.absorbed - {merge.node}}
                values = region.merged, {node: new.name for node, new in region.emitted.items() if node not in inner}
        return Rewritten(self.model.eval(), tuple(call.path for call in self.regions), tuple(self.layers), values)

    # --- choose how each module changes ---

    def _plan(self, merge: Merge) -> None:
        if self.whole:
            self._plan_region(self.network.root, merge)
            return
        if not merge.chain:
            self._plan_region(self._common(merge), merge)
            return
        if self._fits_in_place(merge):
            self.in_place.append(merge)
        else:
            self._plan_region(self.network.calls[merge.host][-1], merge)
        for node in merge.form.absorbed - merge.form.moves - {merge.host}:
            call = self.network.calls[node][-1]
            if self._is_idle(call.path):
                self.idle.add(call.path)
            else:
                self._plan_region(call, merge)

    def _plan_region(self, call: TracedCall, merge: Merge) -> None:
        """Plan to replace the call's module, or the nearest parent that can be replaced, by a graph."""
        merges = self.regions.setdefault(replaceable_call(self.network, self.model, call, {merge.node}), [])
        if merge not in merges:
            merges.append(merge)

    def _common(self, merge: Merge) -> TracedCall:
        """Return the innermost call that contains every absorbed node."""
        chains = [self.network.calls[node] for node in merge.form.absorbed]
        same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*chains, strict=False))
        return next(iter(list(same)[::-1]), (self.network.root,))[0]

    def _is_idle(self, path: str) -> bool:
        """Return whether every call of a module is merged away completely, and nothing else reads its tensors."""
        nodes = {node for call in self.network.by_path[path] for node in call.nodes} - self.masked
        computed = [node for node in nodes if not self.network.is_constant(node)]
        return (
            bool(path)
            and all(node in self.gone for node in computed)
            and only_readers(self.network, self.model, path, nodes)
        )

    def _fits_in_place(self, merge: Merge) -> bool:
        """Return whether the existing layer can compute the merge with new weights, in all of its calls."""
        weight, bias = with_defaults(args_of(merge.host), (None, None, None))[1:3]
        call = self.network.calls[merge.host][-1]
        own = self.model.get_submodule(call.path)
        if not isinstance(own, _LAYERS) or any(node is not merge.host and node in self.gone for node in call.nodes):
            return False
        tensors = [node for node in (weight, bias) if isinstance(node, fx.Node)]
        names = [f"{call.path}.{name}" for name in ("weight", "bias")][: len(tensors)]
        if [self.network.names.get(node) for node in tensors] != names:
            return False
        twins = [self.hosts.get(user) for node in tensors for user in node.users]
        return (
            all(twin is not None and _equal(twin, merge) for twin in twins)
            and tuple(own.weight.shape) == tuple(merge.form.branch()[0].shape)
            and _same_call(own, merge)
        )

    def _update(self, merge: Merge) -> None:
        layer = self.model.get_submodule(self.network.calls[merge.host][-1].path)
        assert isinstance(layer, _LAYERS)
        self.layers.append((layer, merge.host.meta["val"].dtype))
        trained = layer.weight.requires_grad
        layer.weight, layer.bias = (nn.Parameter(tensor.detach().clone(), trained) for tensor in merge.form.branch())


def _equal(first: Merge, second: Merge) -> bool:
    if first is second:
        return True
    return first.form.same_geometry(second.form) and all(
        itertools.starmap(torch.equal, zip(first.form.branch(), second.form.branch(), strict=True))
    )


def _same_call(layer: nn.Module, merge: Merge) -> bool:
    """Return whether the layer has the merged layer's stride, padding, dilation and groups."""
    if isinstance(layer, nn.Linear):
        return True
    _, _, _, stride, padding, dilation, *_, groups = args_of(merge.host)
    form = merge.form
    return (form.stride, form.padding, form.dilation, form.groups) == (
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
    )


class _Merged(Region):
    """The graph of a call with merged layers in place of the operators that they merge."""

    def __init__(self, rewriter: _Rewriter, call: TracedCall) -> None:
        self.rewriter = rewriter
        merges = rewriter.regions[call]
        self.sums = {merge.node: merge for merge in merges if not merge.chain}
        self.chains = {merge.host: merge for merge in merges if merge.chain}
        network = rewriter.network
        kept = rewriter.idle | {network.calls[merge.host][-1].path for merge in rewriter.in_place}
        as_they_are = {node for path in kept for call in network.by_path[path] for node in call.nodes}
        super().__init__(
            network, rewriter.model, call, {node for merge in merges for node in merge.form.absorbed} - as_they_are
        )

    def emit(self, node: fx.Node) -> None:
        """Add merged layers to the graph and skip merged operators."""
        if self.emit_unit(node):
            return
        gone = node in self.touched and node in self.rewriter.gone
        if node in self.sums:
            self.emitted[node] = self._layer(self.sums[node], self.sums[node].form.source)
        elif node in self.chains:
            self.emitted[node] = self._layer(self.chains[node], node.all_input_nodes[0])
        elif gone and any(node in merge.form.absorbed for merge in self.rewriter.chains):
            self.emitted[node] = self.value(self.network.reads(node)[0])
        elif not gone:
            self.copy(node)

    def _layer(self, merge: Merge, source: fx.Node) -> fx.Node:
        stored = self.network.names.get(args_of(merge.host)[1])
        layer = merge.form.module(trained=stored is None or tensor_of(self.network.model, stored).requires_grad)
        self.rewriter.layers.append((layer, merge.host.meta["val"].dtype))
        path = self.network.calls[merge.host][-1].path
        path = path if path != self.call.path else f"{path}.conv".lstrip(".")
        name = self.place(path, layer)
        return self.graph.call_module(name, (self.value(source),))
