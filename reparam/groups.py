"""Find the layers whose channels must be pruned together, and mask them: `channel_groups`, `insert_masks`."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, fx, nn

from reparam.atoms import Ids
from reparam.blocks import Block
from reparam.equivalence import FLOAT64_LIMIT, compare
from reparam.errors import ReparamError
from reparam.exposure import Exposed, with_graphs
from reparam.flow import ChannelFlow, Channels
from reparam.graph import is_norm, read_network, shape_of
from reparam.masking import Masked, Masks, MaskSite, attach_mask
from reparam.modules import child_modules, named_modules
from reparam.rules import rule_of
from reparam.rules.layers import channel_dim
from reparam.structure import Example, arguments_of


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Layers whose output channels are pruned together.

    They are added, multiplied or tied by a depth-wise convolution.
    """

    name: str
    """qualified name of the first producer; with a channel range if other channels of that layer belong to another
    group"""
    channels: int
    """number of entries of the group's mask; an entry may cover several channels of a layer, such as an attention
    head"""
    producers: tuple[str, ...]
    """qualified names of the producing layers (convolutions, transposed convolutions, linear layers, training-form
    blocks)"""
    entries: tuple[tuple[int, ...], ...]
    """index into the mask for each channel of each producer; -1 for a channel of another group"""
    norms: tuple[str, ...]
    """qualified names of the batch norms directly after the producers"""
    sites: tuple[MaskSite, ...]
    """where the mask applies; empty for a group that cannot be pruned"""
    consumers: tuple[str, ...]
    """qualified names of the layers that read the channels"""
    why: str = ""
    """why the group cannot be pruned, in one line; empty if it can"""


def channel_groups(model: nn.Module, example_input: Example) -> tuple[ChannelGroup, ...]:
    """Return the groups of a network without masks, in training or fused form, in the order of their first producers.

    A mask applies as late as it still covers the same channels: after norm and activation, after a residual sum and its
    activation, up to the value that several nodes read or one reads other than channel by channel. There a masked
    channel is exactly 0 for every reader, and the mask gets a gradient, which it would not before a ReLU. If a later
    norm turns the 0 into another constant, the mask applies again. It is attached to the output of the module that
    returns the value, or to the inputs of those that read it. If the value exists only between two operators of a
    module's own code, that module is replaced by its graph, named in `MaskSite.graph`.

    A group can be pruned if `squeeze` can remove any of its channels for any weights. For example, a norm over
    concatenated groups is fine before a convolution without zero padding, but not before one with it.

    Args:
        model: a network that torch.export can read; a `Block` counts as its deployed form.
        example_input: an input of the network's shape, or a tuple of its positional arguments.

    Raises:
        ReparamError: the network cannot be read.
    """
    blocks = {name for name, module in named_modules(model) if isinstance(module, Block)}
    network = read_network(_deployed(model) if blocks else model, arguments_of(example_input))
    flow = ChannelFlow(network, rule_of, generic=True)
    names = _Names(flow, blocks)
    parts, exposed = _draft_groups(flow, names), Exposed(network, blocks)
    while True:
        masks = _MaskPlacement(flow, [part for part in parts if not part.why], exposed)
        masked = ChannelFlow(network, rule_of, generic=True, behind=masks)
        masked.finish()
        failed = [part for part in parts if not part.why and part.give_up(masked, graphs=not blocks)]
        if not failed:
            break
        for part in parts:
            part.sites.clear()
    return tuple(part.group(flow, names) for part in parts)


def _deployed(model: nn.Module) -> nn.Module:
    """Return a copy with every block replaced by its deployed form."""
    root = nn.Sequential(copy.deepcopy(model)).eval()
    for child in child_modules(root):
        if isinstance(child.module, Block):
            child.replace(child.module.deployed())
    return root[0]


class _Names:
    """Names of a network's layers for the user; a training-form block counts as one layer."""

    def __init__(self, flow: ChannelFlow, blocks: set[str]) -> None:
        self.flow, self.blocks = flow, blocks
        self.block_roots = {path: self._roots(path) for path in blocks if path in flow.network.by_path}

    def _roots(self, path: str) -> Ids:
        nodes = [
            node
            for call in self.flow.network.by_path[path]
            for node in call.nodes
            if isinstance(self.flow.values.get(node), Channels)
        ]
        x = self.flow.of(nodes[-1]) if nodes else None
        return np.empty(0, np.int64) if x is None else self.flow.atoms.roots(x.ids.ravel())

    def block(self, node: fx.Node) -> str | None:
        """Return the name of the block that contains a node, if any."""
        return next((call.path for call in self.flow.network.calls[node] if call.path in self.blocks), None)

    def name(self, node: fx.Node) -> str:
        """Return the name of a node's layer or block."""
        block = self.block(node)
        return self.flow.layer_name(node) if block is None else block

    def makers(self) -> list[tuple[fx.Node, Ids]]:
        """Return the layers with their output atoms; within a block, only layers that produce the block's output."""
        makers: list[tuple[fx.Node, Ids]] = []
        for node, ids in self.flow.makers:
            block = self.block(node)
            if block is None or np.isin(self.flow.atoms.roots(ids), self.block_roots[block]).all():
                makers.append((node, ids))
        return makers


@dataclass
class _GroupDraft:
    """A group under construction."""

    name: str
    roots: Ids
    """one atom per entry of its mask"""
    makers: list[fx.Node]
    why: str = ""
    sites: list[MaskSite] = field(default_factory=list)
    in_graphs: bool = False
    """whether its mask may apply inside modules, which then are replaced by their graphs"""

    def entries(self, roots: Ids) -> Ids:
        """Return the mask entry of each channel, or -1."""
        order = np.argsort(self.roots)
        at = np.searchsorted(self.roots, roots, sorter=order).clip(max=len(order) - 1)
        return np.where(self.roots[order[at]] == roots, order[at], -1)

    def give_up(self, masked: ChannelFlow, *, graphs: bool) -> bool:
        """Return whether channels would stay even if all were masked; set `why`, or allow graphs if they may help."""
        roots = masked.atoms.roots(self.roots)
        for refusal in masked.refusals:
            if np.isin(masked.atoms.roots(refusal.ids), roots).any():
                self.why = refusal.message.partition("; ")[0]
                return True
        if not masked.atoms.kept(self.roots).any():
            return False
        if self.in_graphs or not graphs:
            self.why = "some of its readers use it where no mask can be placed"
        self.in_graphs = True
        return True

    def group(self, flow: ChannelFlow, names: _Names) -> ChannelGroup:
        """Return the finished group."""
        readers = [node for node, ids in flow.readers if np.isin(flow.atoms.roots(ids), self.roots).any()]
        outputs = {id(node): flow.atoms.roots(ids) for node, ids in flow.makers}
        producers = {names.name(node): tuple(self.entries(outputs[id(node)]).tolist()) for node in self.makers}
        norms = [user for node in self.makers for user in node.users if is_norm(user) and names.block(user) is None]
        # a depth-wise convolution passes channels through, so it does not consume them
        mixing = {names.name(node) for node in readers if node not in flow.alike}
        consumers = dict.fromkeys(map(names.name, readers))
        return ChannelGroup(
            name=self.name,
            channels=len(self.roots),
            producers=tuple(producers),
            entries=tuple(producers.values()),
            norms=tuple(dict.fromkeys(map(flow.network.where, norms))),
            sites=() if self.why else tuple(dict.fromkeys(self.sites)),
            consumers=tuple(name for name in consumers if name not in producers or name in mixing),
            why=self.why,
        )


def _draft_groups(flow: ChannelFlow, names: _Names) -> list[_GroupDraft]:
    """Group the channels that the same layers produce and that can be removed or not for the same reason."""
    makers = names.makers()
    outputs = [flow.atoms.roots(ids) for _, ids in makers]
    makers_of: dict[int, list[int]] = {}
    for index, roots in enumerate(outputs):
        for root in dict.fromkeys(roots.tolist()):
            makers_of.setdefault(root, []).append(index)
    why: dict[int, str] = {}
    for ids, reason in flow.pinned:
        for root in set(flow.atoms.roots(ids).tolist()) & makers_of.keys():
            why.setdefault(root, reason)
    roots_of: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for root, layers in makers_of.items():
        roots_of.setdefault((tuple(layers), why.get(root, "")), []).append(root)
    parts: list[_GroupDraft] = []
    for roots in roots_of.values():
        own = makers_of[roots[0]]
        first = next((index for index in own if np.isin(outputs[index], roots).all()), own[0])
        at = np.isin(outputs[first], roots).nonzero()[0]
        name = names.name(makers[first][0])
        name = name if len(at) == len(outputs[first]) else f"{name}[{at[0]}:{at[-1] + 1}]"
        if any(part.name == name for part in parts):  # several layers in the code of one module
            name = f"{name}:{makers[first][0].name}"
        part = _GroupDraft(name, np.array(roots), [makers[index][0] for index in own], why.get(roots[0], ""))
        if not part.why and len(roots) == 1 < len(at):
            part.why = "its channels are tied to one another"
        parts.append(part)
    return parts


class _MaskPlacement:
    """Masks every group as late as possible and records the sites."""

    def __init__(self, flow: ChannelFlow, parts: Sequence[_GroupDraft], exposed: Exposed) -> None:
        self._flow, self._exposed = flow, exposed
        self._owner = {root: part for part in parts for root in part.roots.tolist()}
        self._layer_outputs = {frozenset(flow.atoms.roots(ids).tolist()) for _, ids in flow.makers}
        self._single = {
            int(flow.atoms.roots(ids)[0]): len(shape_of(node)) - channel_dim(node)
            for node, ids in flow.makers
            if len(ids) == 1
        }
        self._held: dict[fx.Node, list[tuple[_GroupDraft, int, tuple[int, ...]]]] = {}
        self._places: dict[tuple[fx.Node, int], list[tuple[str, bool]]] = {}

    def __call__(self, node: fx.Node, value: Channels) -> Channels:
        live, const = value.live, value.const
        for part, dim, entries in self.held(node):
            own = np.array(entries) >= 0
            own = own.reshape([-1 if axis == dim else 1 for axis in range(live.ndim)])
            if not (own & (live | (const != 0))).any() or self._later(node, part):
                continue
            sites = [MaskSite(module, front, dim, entries) for module, front in self._at(node, part)]
            if not sites and part.in_graphs and self._next(node, part) is None:
                sites = [MaskSite(value, False, dim, entries, module) for value, module in self._exposed.in_graph(node)]
            part.sites += sites
            if sites:
                live, const = live & ~own, np.where(own, 0.0, const)
        return Channels(value.ids, live, const)

    def held(self, node: fx.Node) -> list[tuple[_GroupDraft, int, tuple[int, ...]]]:
        """Return the groups in a value, with dimension and entries, if it is a single group or one layer's output."""
        if node not in self._held:
            self._held[node] = self._holds(node)
        return self._held[node]

    def _holds(self, node: fx.Node) -> list[tuple[_GroupDraft, int, tuple[int, ...]]]:
        value = self._flow.values.get(node)
        if not isinstance(value, Channels):
            return []
        roots = self._flow.atoms.roots(value.ids)
        dims = [dim for dim in value.dims if (roots != roots.take([0], dim)).any()] or self._dims_of_one(node, roots)
        if len(dims) != 1:
            return []
        row = np.moveaxis(roots, dims[0], 0).reshape(roots.shape[dims[0]], -1)[:, 0]
        members = set(row.tolist())
        parts = {id(part): part for root in members if (part := self._owner.get(root)) is not None}
        is_layer_output = frozenset(members) in self._layer_outputs
        is_one_group = len(parts) == 1 and all(root in self._owner for root in members)
        if not (is_layer_output or is_one_group):
            return []
        return [(part, dims[0], tuple(part.entries(row).tolist())) for part in parts.values()]

    def _dims_of_one(self, node: fx.Node, roots: Ids) -> list[int]:
        """Return the dimension of a layer's only channel, or of channels that are all tied."""
        dim = len(shape_of(node)) - self._single.get(int(roots.ravel()[0]), 0)
        return [dim] if dim < len(shape_of(node)) and shape_of(node)[dim] == 1 else []

    def _of(self, node: fx.Node, part: _GroupDraft) -> tuple[int, tuple[int, ...]] | None:
        return next(((dim, entries) for other, dim, entries in self.held(node) if other is part), None)

    def _at(self, node: fx.Node, part: _GroupDraft) -> list[tuple[str, bool]]:
        key = (node, id(part))
        if key not in self._places:
            held = self._of(node, part)
            self._places[key] = self._exposed.at(node, lambda other: self._of(other, part) == held)
        return self._places[key]

    def _later(self, node: fx.Node, part: _GroupDraft) -> bool:
        """Return whether the mask can apply after a later node."""
        user = self._next(node, part)
        return user is not None and (bool(self._at(user, part)) or self._later(user, part))

    def _next(self, node: fx.Node, part: _GroupDraft) -> fx.Node | None:
        """Return the next node if it can be masked in the same way."""
        user = _only_reader(node)
        if user is None or user not in self._flow.alike:
            return None
        return user if self._of(user, part) == self._of(node, part) else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the only value computed from a value; None if there are several."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return _only_reader(user) if is_norm(user) else user


def insert_masks(
    model: nn.Module,
    example_input: Example,
    groups: Sequence[ChannelGroup],
    make_mask: Callable[[ChannelGroup], nn.Module],
) -> nn.Module:
    """Return a copy of the network with one mask per group, at all of its sites: `masks.<group name with _ for .>`.

    The copy keeps its mode, and its submodules and parameters keep their names. A masked module gets a hook. A module
    with a site in its own code is replaced by its graph in evaluation mode, which calls its submodules.

    Args:
        model: the network that was passed to `channel_groups`; it stays unchanged.
        example_input: the input that was passed to `channel_groups`.
        groups: the groups to mask.
        make_mask: creates the module that multiplies the channels (dimension 1) of its input; called once per group. If
            the network has channels in another dimension, as in [N, L, C], the module gets the transposed value; if an
            entry covers several channels, such as an attention head, they are in dimension 2.

    Raises:
        ReparamError: a group cannot be pruned or is not from this network, or a module changes its input in place.
    """
    masked = with_graphs(copy.deepcopy(model), example_input, [site for group in groups for site in group.sites])
    modules = dict(named_modules(masked))
    masks = Masks()
    for group in groups:
        why = group.why
        if not why and hasattr(model, "masks"):
            why = "the network already has a submodule 'masks'"
        if not why and not all(site.module in modules for site in group.sites):
            why = "the network has no such modules; call channel_groups again"
        if why:
            raise ReparamError(f"group {group.name} cannot be masked: {why}")
        name = group.name.replace(".", "_")
        masks.add_module(name, make_mask(group))
        for site in group.sites:
            attach_mask(modules[site.module], Masked(masks, name, site, group.channels))
    masked.add_module("masks", masks)
    if any(site.front for group in groups for site in group.sites):
        _require_inputs_kept(model, masked, example_input)
    return masked


class _Ones(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Return a copy."""
        return x.clone()


def _require_inputs_kept(model: nn.Module, masked: nn.Module, example_input: Example) -> None:
    """Require that no module with a masked input changes it in place, since it would change a copy instead."""
    probe = copy.deepcopy(masked)
    masks = probe.get_submodule("masks")
    assert isinstance(masks, Masks)
    for name in list(masks):
        masks.add_module(name, _Ones())
    if not compare(model, probe, example_input).within(FLOAT64_LIMIT):
        raise ReparamError("a module of the network changes its masked input in place: return the result instead")
