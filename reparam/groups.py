"""Which layers lose their channels together, and where to mask them: `channel_groups`, `insert_masks`."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, fx, nn

from reparam.channels import Channels, Flow, Ids, Traced
from reparam.errors import ReparamError
from reparam.tracing import trace


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Layers whose output channels are pruned together: added to or multiplied with one another, or tied by a depth-wise convolution."""

    name: str
    """qualified name of its first producer"""
    channels: int
    """entries of its one mask"""
    producers: tuple[str, ...]
    """qualified names of the layers (convolutions, transposed convolutions, linear layers, trained-form blocks) that make the channels"""
    sites: tuple[str, ...]
    """nodes of the graph behind which the mask stands; none for a group that cannot be pruned"""
    dims: tuple[int, ...]
    """which dimension of each of these nodes holds the channels"""
    consumers: tuple[str, ...]
    """qualified names of the layers that read the channels"""
    why: str = ""
    """why it cannot be pruned, in one line; empty where it can"""


def channel_groups(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> tuple[ChannelGroup, ...]:
    """The groups of a network without masks, in its trained or its fused form, in the order of their first producers.

    A mask stands as late as it covers the same channels: behind norm and activation, behind the sum of a residual connection and what
    follows it, up to where more than one node reads the value or one reads it otherwise than channel by channel. There a masked channel is
    exactly 0 for all who read it, and the mask has a gradient, which it would not have before a ReLU. Where a norm makes another number of
    the 0, the mask stands again.

    A group can be pruned if `squeeze` can remove any of its channels, whatever the weights are: a norm over concatenated groups is fine
    before a convolution without a zero-padded border, and not before one with.

    Raises:
        ReparamError: torch.fx cannot trace the network, or a node cannot be run on `example_input`.
    """
    traced = Traced(copy.deepcopy(model).eval(), example_input)
    flow = Flow(traced, generic=True)
    parts = _parts(flow)
    while True:
        masked = Flow(traced, generic=True, behind=_Masks(flow, [part for part in parts if not part.why]))
        masked.finish()
        failed = False
        for part in parts:
            if not part.why and part.give_up(masked):
                failed = True
        if not failed:
            break
        for part in parts:
            part.sites.clear()
    return tuple(part.group(flow) for part in parts)


@dataclass
class _Part:
    """A group in the making."""

    ids: Ids
    roots: Ids
    makers: list[fx.Node]
    why: str = ""
    sites: list[fx.Node] = field(default_factory=list)

    def give_up(self, masked: Flow) -> bool:
        """Whether masking all of it leaves some of it where it is; says why."""
        for refusal in masked.refusals:
            if np.isin(masked.atoms.roots(refusal.ids), masked.atoms.roots(self.ids)).any():
                self.why = refusal.message.partition("; ")[0]
                return True
        if masked.atoms.kept(self.ids).any():
            self.why = "some of its readers see it before a mask could stand"
            return True
        return False

    def group(self, flow: Flow) -> ChannelGroup:
        consumers = (str(node.target) for node, ids in flow.readers if np.isin(flow.atoms.roots(ids), self.roots).any())
        producers = tuple(dict.fromkeys(str(node.target) for node in self.makers))
        return ChannelGroup(
            name=producers[0],
            channels=len(self.ids),
            producers=producers,
            sites=() if self.why else tuple(node.name for node in self.sites),
            dims=() if self.why else tuple(flow.values[node].dim for node in self.sites),
            consumers=tuple(name for name in dict.fromkeys(consumers) if name not in producers or name in self._twice(flow)),
            why=self.why,
        )

    def _twice(self, flow: Flow) -> set[str]:
        """Layers of the group that mix its own channels, as one that is used in turns; a depth-wise convolution only hands them on."""
        return {str(node.target) for node, _ in flow.readers if node not in flow.alike}


def _parts(flow: Flow) -> list[_Part]:
    parts: list[_Part] = []
    owner: dict[int, _Part] = {}
    for node, ids in flow.makers:
        roots = flow.atoms.roots(ids)
        owners = {id(owner[root]): owner[root] for root in roots.tolist() if root in owner}
        same = next(iter(owners.values()), None)
        if len(owners) == 1 and same is not None and np.array_equal(same.roots, roots):
            same.makers.append(node)
            continue
        part = _Part(ids, roots, [node])
        for other in owners.values():
            part.why = part.why or f"some of its channels are tied to {other.makers[0].target}, others are not"
            other.why = other.why or f"some of its channels are tied to {node.target}, others are not"
        for root in roots.tolist():
            owner.setdefault(root, part)
        parts.append(part)
    for ids, why in (*flow.pinned, *flow.tied):
        for part in {id(owner[root]): owner[root] for root in flow.atoms.roots(ids).tolist() if root in owner}.values():
            part.why = part.why or why
    for part in parts:
        if not part.why and len(np.unique(part.roots)) < len(part.roots):
            part.why = "its channels are tied to one another"
    return parts


class _Masks:
    """Masks every group, as late as that covers it, and notes where."""

    def __init__(self, flow: Flow, parts: Sequence[_Part]) -> None:
        self._flow = flow
        self._parts = {part.roots.tobytes(): part for part in parts}

    def __call__(self, node: fx.Node, value: Channels) -> Channels:
        part = self._part(node)
        if part is None or value.dead_zero() or self._later(node, part):
            return value
        part.sites.append(node)
        return Channels(value.ids, np.zeros_like(value.live), np.zeros_like(value.const), value.dim)

    def _part(self, node: fx.Node) -> _Part | None:
        value = self._flow.values[node]
        return self._parts.get(self._flow.atoms.roots(value.ids).tobytes()) if isinstance(value, Channels) else None

    def _later(self, node: fx.Node, part: _Part) -> bool:
        if len(node.users) != 1:
            return False
        (user,) = node.users
        return user in self._flow.alike and self._part(user) is part


def insert_masks(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    groups: Sequence[ChannelGroup],
    make_mask: Callable[[ChannelGroup], nn.Module],
) -> nn.Module:
    """A copy of the network with one mask for each group, at all of its sites, as the submodule `masks.<name with _ for .>`.

    Args:
        model: the network that `channel_groups` found the groups in; it stays as it was.
        example_input: what they were found with.
        groups: those to mask.
        make_mask: makes the module that multiplies the channels (dimension 1) of its input; called once for each group. Where a network
            has them in another dimension, as in [N, L, C], it is given the transposed value.

    Returns:
        An `fx.GraphModule` with all submodules and parameters under their names, in the mode of the model.

    Raises:
        ReparamError: torch.fx cannot trace the network, it computes other things in training mode than in evaluation mode outside of its
            modules, or a group cannot be pruned or is not of this network.
    """
    root = copy.deepcopy(model)
    inputs = len(example_input) if isinstance(example_input, tuple) else 1
    graph = trace(root.train(), inputs)
    _require_same(graph, trace(root.eval(), inputs))
    masked = fx.GraphModule(root, graph)
    for name, child in root.named_children():
        masked.add_module(name, child)
    nodes = {node.name: node for node in graph.nodes}
    masks = nn.Module()
    masked.add_module("masks", masks)
    for group in groups:
        strange = "" if set(group.sites) <= nodes.keys() else "the network has no such nodes; find its groups anew"
        if hasattr(model, "masks"):
            strange = "the network has a submodule 'masks' already"
        if group.why or strange:
            raise ReparamError(f"group {group.name} cannot be masked: {group.why or strange}")
        name = group.name.replace(".", "_")
        masks.add_module(name, make_mask(group))
        for site, dim in zip(group.sites, group.dims, strict=True):
            _insert(graph, f"masks.{name}", nodes[site], dim)
    masked.recompile()
    return masked.train(model.training)


def _insert(graph: fx.Graph, mask: str, site: fx.Node, dim: int) -> None:
    readers = tuple(site.users)
    value = site
    for target, args in ((None, (1, dim)), (mask, ()), (None, (1, dim))):
        if target is None and dim == 1:
            continue
        with graph.inserting_after(value):
            value = graph.call_module(target, (value,)) if target else graph.call_method("transpose", (value, *args))
    for reader in readers:
        reader.replace_input_with(site, value)


def _require_same(training: fx.Graph, evaluation: fx.Graph) -> None:
    for one, other in zip(training.nodes, evaluation.nodes, strict=False):
        if one.format_node() != other.format_node():
            raise ReparamError(
                f"node {one.name}: the network computes other things in training mode than in evaluation mode outside of its modules, "
                "which a graph cannot: use nn.Dropout for dropout(training=self.training)"
            )
    if len(training.nodes) != len(evaluation.nodes):
        raise ReparamError("the network computes other things in training mode than in evaluation mode, which a graph cannot")
