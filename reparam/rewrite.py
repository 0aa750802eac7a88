"""Put what is merged back into the person's own module: new weights where its code stays right, its graph where it does not."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.branches import Merge
from reparam.graph import Call, Network
from reparam.masking import Masks, lift, place
from reparam.regions import Region, home, install, only_readers, tensor_of

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


@dataclass(frozen=True)
class Rewritten:
    """What came out."""

    module: nn.Module
    graphs: tuple[str, ...]
    """names of the modules that are a graph now; "" is the network itself"""
    layers: tuple[tuple[nn.Module, torch.dtype], ...]
    """layers with weights in float64, and the type that the network has them in"""
    values: tuple[fx.GraphModule, Mapping[fx.Node, str]] | None = None
    """where the network itself is a graph: that graph, and which of its nodes computes which value of the network that was read"""

    def rounded(self) -> nn.Module:
        """The module with every weight in the type that it had."""
        for layer, dtype in self.layers:
            layer.to(dtype)
        return self.module


def rewrite(network: Network, merges: Sequence[Merge], *, whole: bool = False) -> Rewritten:
    """A copy of the network with its merges, the merged layers in float64.

    A row of operators becomes its layer with other weights, and the rest of the row an `nn.Identity` each. Where the code of a module
    computes what is gone, as the sum of branches, the module becomes a graph of the modules that stay and the merged layer.

    Args:
        network: as it was read.
        merges: of it.
        whole: make a graph of the network itself.

    Raises:
        SeenError: a module with hooks would go.
    """
    return _Rewriter(network, merges, whole=whole).result()


class _Rewriter:
    def __init__(self, network: Network, merges: Sequence[Merge], *, whole: bool) -> None:
        self.network, self.merges, self.whole = network, merges, whole
        self.model: nn.Module = copy.deepcopy(network.model)
        self.rows = [merge for merge in merges if merge.chain]
        self.gone = {node for merge in merges for node in merge.form.absorbed} - {merge.host for merge in self.rows}
        self.gone -= {merge.node for merge in merges if not merge.chain} | {node for merge in merges for node in merge.form.moves}
        self.hosts = {merge.host: merge for merge in self.rows}
        self.homes: dict[Call, list[Merge]] = {}
        self.in_place: list[Merge] = []
        self.layers = list(self._more_exact())
        modules = dict(self.model.named_modules())
        self.masked = {n for n, chain in network.calls.items() if any(isinstance(modules[call.path], Masks) for call in chain)}
        """what masks compute that stand at other modules"""
        self.idle: set[str] = set()
        """names of modules that have nothing left to do"""

    def _more_exact(self) -> Iterator[tuple[nn.Module, torch.dtype]]:
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
            masks, idle = lift(self.model.get_submodule(path)), nn.Identity()
            self.model = install(self.model, path, idle)
            for masked in masks:
                place(idle, masked)
        values = None
        for call in sorted(self.homes, key=lambda call: -len(call.path)):
            region = _Merged(self, call)
            self.model = install(self.model, call.path, region.module())
            if self.whole:
                inner = {node for merge in self.merges for node in merge.form.absorbed - {merge.node}}
                values = region.merged, {node: made.name for node, made in region.made.items() if node not in inner}
        return Rewritten(self.model.eval(), tuple(call.path for call in self.homes), tuple(self.layers), values)

    # --- what happens to which module ---

    def _plan(self, merge: Merge) -> None:
        if self.whole:
            self._home(self.network.root, merge)
            return
        if not merge.chain:
            self._home(self._common(merge), merge)
            return
        if self._fits_in_place(merge):
            self.in_place.append(merge)
        else:
            self._home(self.network.calls[merge.host][-1], merge)
        for node in merge.form.absorbed - merge.form.moves - {merge.host}:
            call = self.network.calls[node][-1]
            if self._is_idle(call.path):
                self.idle.add(call.path)
            else:
                self._home(call, merge)

    def _home(self, call: Call, merge: Merge) -> None:
        merges = self.homes.setdefault(home(self.network, self.model, call, {merge.node}), [])
        if merge not in merges:
            merges.append(merge)

    def _common(self, merge: Merge) -> Call:
        chains = [self.network.calls[node] for node in merge.form.absorbed]
        same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*chains, strict=False))
        return next(iter(list(same)[::-1]), (self.network.root,))[0]

    def _is_idle(self, path: str) -> bool:
        """Whether all that a module computes, in all of its calls, is gone, and nobody else reads its tensors."""
        nodes = {node for call in self.network.by_path[path] for node in call.nodes} - self.masked
        computed = [node for node in nodes if not self.network.is_constant(node)]
        return bool(path) and all(node in self.gone for node in computed) and only_readers(self.network, self.model, path, nodes)

    def _fits_in_place(self, merge: Merge) -> bool:
        """Whether the layer that is there computes it with other weights, in all of its calls."""
        weight, bias, *_ = (*merge.host.args[1:3], None)
        call = self.network.calls[merge.host][-1]
        own: Any = self.model.get_submodule(call.path)
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
        layer: Any = self.model.get_submodule(self.network.calls[merge.host][-1].path)
        self.layers.append((layer, merge.host.meta["val"].dtype))
        trained = layer.weight.requires_grad
        layer.weight, layer.bias = (nn.Parameter(tensor.detach().clone(), trained) for tensor in merge.form.branch())


def _equal(one: Merge, other: Merge) -> bool:
    if one is other:
        return True
    return one.form.same_geometry(other.form) and all(
        itertools.starmap(torch.equal, zip(one.form.branch(), other.form.branch(), strict=True))
    )


def _same_call(layer: Any, merge: Merge) -> bool:
    """Whether the layer is called as the merged one is: its own code says how."""
    if isinstance(layer, nn.Linear):
        return True
    _, _, _, stride, padding, dilation, *_, groups = merge.host.args
    form = merge.form
    wanted = (form.stride, form.padding, form.dilation, form.groups)
    return wanted == (*(tuple(value) for value in (stride, padding, dilation)), groups)  # pyright: ignore[reportArgumentType]


class _Merged(Region):
    """The graph of a call in which merged layers stand for what they merge."""

    def __init__(self, rewriter: _Rewriter, call: Call) -> None:
        self.rewriter = rewriter
        homed = rewriter.homes[call]
        self.sums = {merge.node: merge for merge in homed if not merge.chain}
        self.rows = {merge.host: merge for merge in homed if merge.chain}
        network = rewriter.network
        kept = rewriter.idle | {network.calls[merge.host][-1].path for merge in rewriter.in_place}
        as_they_are = {node for path in kept for call in network.by_path[path] for node in call.nodes}
        super().__init__(network, rewriter.model, call, {node for merge in homed for node in merge.form.absorbed} - as_they_are)

    def emit(self, node: fx.Node) -> None:
        """Merged layers, and nothing for what is gone."""
        if self.emit_unit(node):
            return
        gone = node in self.touched and node in self.rewriter.gone
        if node in self.sums:
            self.made[node] = self._layer(self.sums[node], self.sums[node].form.source)
        elif node in self.rows:
            self.made[node] = self._layer(self.rows[node], node.all_input_nodes[0])
        elif gone and any(node in merge.form.absorbed for merge in self.rewriter.rows):
            self.made[node] = self.value(self.network.reads(node)[0])
        elif not gone:
            self.copy(node)

    def _layer(self, merge: Merge, source: fx.Node) -> fx.Node:
        stored = self.network.names.get(merge.host.args[1])  # pyright: ignore[reportArgumentType]
        layer = merge.form.module(trained=stored is None or tensor_of(self.network.model, stored).requires_grad)
        self.rewriter.layers.append((layer, merge.host.meta["val"].dtype))
        path = self.network.calls[merge.host][-1].path
        path = path if path != self.call.path else f"{path}.conv".lstrip(".")
        name = self.place(path, layer)
        return self.graph.call_module(name, (self.value(source),))
