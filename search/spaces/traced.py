"""The space of widths of any network: its layers at all widths of its channel groups."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast, final

import msgspec

from latency.block import BlockSpec
from search import ops
from search.errors import SearchError
from search.ops import Geometry, ModelSize
from search.space import Choice
from search.spaces.prunable import AffineWidth, Condition, Prunable, Site, Stage, StageBlock, Widths

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from reparam import ChannelGroup
    from reparam.atoms import Ids

Pair = tuple[int, int]

_CHOICES = 32
"""Maximum number of widths that a group can ship with."""


@final
@dataclass(frozen=True, kw_only=True)
class Traced(Prunable):
    """The networks that pruning derives from one network; see `of_module`.

    Its blocks are the layers of the fused network: convolutions, including depthwise and transposed ones, and linear
    layers. Operations between them (sums, pooling, norms that are not folded) are covered by the measured networks that
    the table's predictor is fitted to.
    """

    members: tuple[tuple[str, int], ...]
    """name and full width of each group"""
    places: tuple[Site, ...]
    points: int = 6
    """maximum number of measured widths along each axis of a layer"""
    named_stages: tuple[Stage, ...] = ()
    shortcuts: tuple[str, ...] = ()
    """modules of the joining sites, in order: a 1x1 convolution with a norm if the widths before and after the sum
    differ, otherwise the identity"""
    make: "Callable[[], nn.Module]" = field(compare=False, repr=False)
    """returns the network in its training form"""

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Name and full width of each group of channels that can be pruned."""
        return self.members

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that were named."""
        return self.named_stages

    def at_depths(self, depths: Mapping[str, int]) -> "Traced":
        """Return the space of widths of networks with the given depths."""
        return dataclasses.replace(self, places=tuple(self.sites_at(depths)), named_stages=())

    @property
    def free(self) -> bool:
        """Whether the widths on both sides of a shortcut may differ."""
        return bool(self.shortcuts)

    def owned_groups(self, blocks: Sequence[StageBlock]) -> set[int]:
        """Return the groups that no site outside the given blocks reads or produces.

        If widths are free, those that the blocks produce.
        """
        return (
            {group for block in blocks for group in self.produced_groups(block)}
            if self.free
            else super().owned_groups(blocks)
        )

    def sites_at(self, depths: Mapping[str, int]) -> list[Site]:
        """Return the sites at the given depths.

        If widths are free, sites after a stage read the output of its last running block.
        """
        sites = super().sites_at(depths)
        for stage in self.stages if self.free else ():
            sites = [_rerouted(site, *self._ends(stage, depths.get(stage.name, len(stage.blocks)))) for site in sites]
        return sites

    def conditional_sites(self) -> list[tuple[Site, Condition | None]]:
        """Return the sites of all networks with their conditions.

        If widths are free, sites after a stage occur once per depth.
        """
        sites = super().conditional_sites()
        for stage in self.stages if self.free else ():
            ends = [self._ends(stage, depth) for depth in range(1, len(stage.blocks) + 1)]
            readers = {site for site, _ in sites if ends[-1][0] in dict(site.spans[0].terms)}
            sites = [
                (_rerouted(site, *end), (stage.name, (depth,))) if site in readers else (site, condition)
                for site, condition in sites
                for depth, end in enumerate(ends if site in readers else ends[-1:], 1)
            ]
        return sites

    def _ends(self, stage: Stage, depth: int) -> tuple[int, int]:
        """Return the output groups of a stage at its full depth and at the given depth."""
        return self.produced_groups(stage.blocks[-1])[-1], self.produced_groups(stage.blocks[depth - 1])[-1]

    def insert_shortcuts(self, network: "nn.Module", choice: Choice | None) -> None:
        """Insert the convolutions on the shortcuts of a choice, in place.

        Without a choice, on all shortcuts that may have one.
        """
        from search import blocks

        widths = None if choice is None else self.widths(choice)
        away = {site for block in self.skipped(choice.depths if choice else {}) for site in block.sites}
        joins = [index for index, site in enumerate(self.places) if site.joins]
        for name, index in zip(self.shortcuts, joins, strict=True):
            site = self.places[index]
            if index not in away and (widths is None or site.at(widths)):
                network.set_submodule(name, blocks.trained(site.spec))

    def sites(self) -> list[Site]:
        """The layers in execution order."""
        return list(self.places)

    @property
    def serial(self) -> bool:
        """False: operations between its layers are not blocks."""
        return False

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """The layers in execution order.

        Raises:
            SearchError: the choice is not of this space, or the space comes from a file that does not list the layers.
        """
        if not self.places:
            raise SearchError(
                f"the layers of {self.name} are not recorded: make the space again with spaces.of_module(model, ...)"
            )
        return super().network(choice)

    def unpruned(self) -> "nn.Module":
        """The unpruned network."""
        return self.make()

    def deployed(self, choice: Choice | None = None) -> "nn.Module":
        """The network, fused and squeezed."""
        import torch

        from reparam import fuse, squeeze

        example = torch.zeros(1, *self.input_shape)
        return squeeze(fuse(self.module(choice), example), example)

    def record(self) -> dict[str, Any]:
        """The fields of the space, except for the module."""
        facts = {
            name: getattr(self, name)
            for name in ("name", "input_shape", "classes", "granularity", "points", "members", "places")
        }
        kind: dict[str, Any] = {"kind": "staged", "stages": self.stages} if self.stages else {"kind": "traced"}
        if self.free:
            kind = {"kind": "free", "stages": self.stages, "shortcuts": self.shortcuts}
        return msgspec.json.decode(msgspec.json.encode({**kind, **facts}))

    def width_choices(self, index: int) -> Widths:
        """Multiples of the granularity, or of a multiple of it if there are too many, and the full width."""
        full = self.members[index][1]
        step = self.granularity * max(1, math.ceil(full / self.granularity / _CHOICES))
        return (*range(step, full, step), full)

    def blocks(self) -> list[BlockSpec]:
        """Each family of layers on a coarse grid over all widths of its layers.

        A grid of more than 4 x 4 points is thinned to every other point in a chessboard pattern, plus its corners.
        Layers of other widths are interpolated.
        """
        families: dict[str, list[Site]] = {}
        for site in self.places:
            families.setdefault(site.spec.family, []).append(site)
        specs: list[BlockSpec] = []
        for sites in families.values():
            names = [name for name, _ in sites[0].spec.widths]
            axes = [self._axis([site.spans[index] for site in sites]) for index in range(len(names))]
            for places in itertools.product(*(range(len(axis)) for axis in axes)):
                corner = all(place in (0, len(axis) - 1) for place, axis in zip(places, axes, strict=True))
                sparse = len(axes) > 1 and min(map(len, axes)) > 1 and math.prod(map(len, axes)) > 16
                if corner or not sparse or sum(places) % 2 == 0:
                    widths = {name: axis[place] for name, axis, place in zip(names, axes, places, strict=True)}
                    specs.append(sites[0].spec.with_widths(**widths))
        return specs

    def _axis(self, spans: list[AffineWidth]) -> Widths:
        ends = [int(span.at(widths)) for span in spans for widths in (self.smallest_widths(), self.full_widths())]
        low, high = min(ends), max(ends)
        step = (high - low) / max(1, self.points - 1)
        inner = (self.granularity * round((low + k * step) / self.granularity) for k in range(1, self.points - 1))
        return tuple(sorted({low, high, *(width for width in inner if low < width < high)}))

    def counts(self, spec: BlockSpec, *, deployed: bool) -> ModelSize:
        """Size of one layer; the training form has one norm per convolution."""
        return ops.counts(spec, deployed=deployed)


def of_module(
    model: "nn.Module", example_input: "torch.Tensor", *, name: str, granularity: int = 8, points: int = 6
) -> Traced:
    """Return the space of a network's widths, to be profiled and searched.

    Args:
        model: a classifier that torch.export can read. A search starts from its weights (`pretrain_epochs=0`) or trains
            it further.
        example_input: one image of the network's input shape [1, channels, height, width].
        name: name of the space.
        granularity: channels between two widths that can ship.
        points: maximum number of measured widths along each axis of a layer.

    Raises:
        SearchError: the input is not an image, nothing can be pruned, or a layer is of a kind that cannot be measured;
            names the layer.
        ReparamError: the network cannot be read or fused; names the node.
    """
    import copy

    held = copy.deepcopy(model)
    return traced(lambda: copy.deepcopy(held), example_input, name=name, granularity=granularity, points=points)


def traced(
    make: "Callable[[], nn.Module]",
    example_input: "torch.Tensor",
    *,
    name: str,
    granularity: int = 8,
    points: int = 6,
    stages: Mapping[str, Sequence[str]] | None = None,
    shortcuts: Sequence[str] = (),
) -> Traced:
    """Like `of_module`, for a network that is made anew each time.

    Args:
        make: returns the network.
        example_input: see `of_module`, like the next three.
        name: name of the space.
        granularity: channels between two widths that can ship.
        points: maximum number of measured widths along each axis of a layer.
        stages: names of the blocks of each stage of open depth in the network, in order; see `Stage`.
        shortcuts: names of 1x1 convolutions with a norm, in order, that are identities in networks of equal widths. The
            caller then sets the space's `make` to one that returns the network with identities.

    Raises:
        SearchError: as `of_module`; or a stage cannot lose one of its blocks; names the block.
        ReparamError: as `of_module`.
    """
    from search import masks

    if example_input.ndim != 4:
        raise SearchError(
            f"example_input must be images [1, channels, height, width], found the shape {tuple(example_input.shape)}"
        )
    if granularity < 1 or points < 2:
        raise SearchError(f"granularity must be at least 1 and points at least 2, found {granularity} and {points}")
    example, model = example_input[:1], make()
    groups = masks.prunable_groups(model, example)
    places, layers, outputs = _sites(model, example, groups, shortcuts)
    _require_blocks(model, example, stages or {})
    space = Traced(
        name=name,
        input_shape=(int(example.shape[1]), int(example.shape[2]), int(example.shape[3])),
        classes=outputs,
        granularity=granularity,
        members=tuple((group.name, group.channels) for group in groups),
        places=places,
        points=points,
        named_stages=tuple(
            Stage(
                name=stage, blocks=tuple(StageBlock(module=block, sites=_indices_in(block, layers)) for block in blocks)
            )
            for stage, blocks in (stages or {}).items()
        ),
        shortcuts=tuple(shortcuts),
        make=make,
    )
    if not space.free:
        _require_channels(space)
    return space


def _sites(
    model: "nn.Module", example: "torch.Tensor", groups: "Sequence[ChannelGroup]", shortcuts: Sequence[str]
) -> tuple[tuple[Site, ...], list[str], int]:
    """Return the layers of the fused network as sites, their names, and the number of the network's outputs."""
    from reparam.flow import ChannelFlow
    from reparam.graph import read_network, shape_of
    from reparam.rules import rule_of
    from search import masks

    fused, twins = masks.fused_form(model, example)
    flow = ChannelFlow(read_network(fused, (example,)), rule_of, generic=True)
    made = {flow.layer_name(node): flow.atoms.roots(ids).tolist() for node, ids in flow.makers}
    owner: dict[int, int] = {}
    for index, twin in enumerate(twins[group.name] for group in groups):
        channels = zip(made[twin.producers[0]], twin.entries[0], strict=True)
        owner |= dict.fromkeys((root for root, entry in channels if entry >= 0), index)

    def span(ids: "Ids") -> AffineWidth:
        roots = flow.atoms.roots(ids).tolist()
        counts = Counter(owner[root] for root in roots if root in owner)
        terms = tuple((group, _factor(count, groups[group].channels)) for group, count in sorted(counts.items()))
        return AffineWidth(fixed=len(roots) - counts.total(), terms=terms)

    places, layers = list[Site](), list[str]()
    for (node, into), (_, out) in zip(flow.readers, flow.makers, strict=True):
        layer = flow.layer_name(node)
        (source,) = flow.network.reads(node)
        spec = _block_of(layer, fused.get_submodule(layer), shape_of(source), _activation(node))
        joins = any(layer.startswith(f"{shortcut}.") for shortcut in shortcuts)
        places.append(Site(spec=spec, spans=(span(into), span(out))[: len(spec.widths)], joins=joins))
        layers.append(layer)
    (output,) = map(shape_of, flow.network.outputs[:1])
    return tuple(places), layers, output[1] if len(output) > 1 else 1


def _require_blocks(model: "nn.Module", example: "torch.Tensor", stages: Mapping[str, Sequence[str]]) -> None:
    """Require that each block of a stage but the first can be left out.

    It exists, and its input and output shapes are equal.

    Raises:
        SearchError: a block cannot be left out; names stage and block.
    """
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from reparam.modules import named_modules

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    named, hooks = dict(named_modules(model)), list[RemovableHandle]()
    for stage, blocks in stages.items():
        if len(blocks) < 2:
            raise SearchError(f"stage {stage} has one block, {', '.join(blocks)}, and needs one more that it can lose")
        for block in blocks:
            if block not in named:
                raise SearchError(f"stage {stage} has no block {block} in the network")

            def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, block: str = block) -> None:
                shapes[block] = tuple(inputs[0].shape), tuple(output.shape)

            hooks.append(named[block].register_forward_hook(note))
    if not hooks:
        return
    with torch.no_grad():
        model.eval()(example)
    for hook in hooks:
        hook.remove()
    for stage, blocks in stages.items():
        for block in blocks[1:]:
            before, after = shapes.get(block, ((), ()))
            if before != after:
                raise SearchError(f"stage {stage} cannot lose block {block}: it reads {before} and makes {after}")


def _require_channels(space: Traced) -> None:
    """Require that all channels that the network reads without a block are produced outside the block.

    Raises:
        SearchError: they are not; names stage and block.
    """
    for stage in space.stages:
        for block in stage.blocks[1:]:
            spans = [site.spans for index, site in enumerate(space.places) if index not in block.sites]
            read = {group for into, *_ in spans for group, _ in into.terms}
            made = {group for _, *out in spans for span in out for group, _ in span.terms}
            if not read <= made:
                raise SearchError(
                    f"stage {stage.name} cannot lose block {block.module}: the network has other channels without it"
                )


def _rerouted(site: Site, old: int, new: int) -> Site:
    """Return the site with group `new` in place of `old` in its input."""
    into, *out = site.spans
    terms = tuple((new if group == old else group, times) for group, times in into.terms)
    return msgspec.structs.replace(site, spans=(msgspec.structs.replace(into, terms=terms), *out))


def _indices_in(module: str, layers: Sequence[str]) -> tuple[int, ...]:
    return tuple(index for index, layer in enumerate(layers) if layer == module or layer.startswith(f"{module}."))


def _factor(count: int, channels: int) -> int | float:
    return count // channels if count % channels == 0 else count / channels


def _block_of(name: str, layer: "nn.Module", before: tuple[int, ...], act: str) -> BlockSpec:
    from torch import nn

    match layer:
        case nn.Linear():
            return ops.layer("linear", (layer.in_features, math.prod(before[1:-1]), 1), layer.out_features, act=act)
        case nn.Conv2d() | nn.ConvTranspose2d():
            pad: Any = layer.padding
            if isinstance(pad, str):
                sides = zip(layer.dilation, layer.kernel_size, strict=True)
                pad = tuple(step * (side - 1) // 2 if pad == "same" else 0 for step, side in sides)
            kernel, stride = cast("Pair", layer.kernel_size), cast("Pair", layer.stride)
            geometry = Geometry(kernel, stride, pad, layer.dilation[0], layer.output_padding[0])
            shape = (layer.in_channels, before[2], before[3])
            if isinstance(layer, nn.ConvTranspose2d):
                if layer.groups == 1:
                    return ops.layer("conv_transpose", shape, layer.out_channels, geometry, act=act)
            elif layer.groups == layer.in_channels == layer.out_channels:
                return ops.layer("depthwise", shape, None, geometry, act=act)
            else:
                return ops.layer("conv", shape, layer.out_channels, geometry, act=act, groups=layer.groups)
        case _:
            pass
    groups = getattr(layer, "groups", 1)
    kind = type(layer).__name__ + (f" of {groups} groups" if groups > 1 else "")
    raise SearchError(
        f"layer {name} is a {kind}, of which no block can be measured: Conv2d, ConvTranspose2d and Linear can"
    )


def _activation(node: "fx.Node") -> str:
    """Return the activation after a layer if nothing else reads its output; `none` also if its kind is not measured."""
    from reparam.graph import operator_of

    names = {"relu": "relu", "silu": "swish", "hardswish": "hardswish", "sigmoid": "sigmoid", "tanh": "tanh"}
    while len(node.users) == 1:
        (node,) = node.users
        operator = operator_of(node)
        if operator == "hardtanh" and node.args[1:] in ((0, 6), (0.0, 6.0)):
            return "relu6"
        if operator not in ("clone", "alias"):
            return names.get(operator, "none")
    return "none"
