"""Search spaces as data: which networks there are, and the blocks that they are made of. Needs no torch.

Three kinds: a `Prunable` one has open widths, a `Layered` one a choice of blocks in every layer, a `Fixed` one a single network.
"""

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import msgspec
from msgspec import Struct

from latency.block import BlockSpec
from search import ops
from search.errors import SearchError
from search.ops import Counts, Shape

if TYPE_CHECKING:
    from torch import nn

_MANY = 33
"""Values of a span of several groups, at most."""

Widths = tuple[int, ...]
"""Channels of every group of a prunable space, in order: one of its networks."""


@dataclass(frozen=True, kw_only=True)
class Space(ABC):
    """A set of networks. Each is a list of blocks in order, every one fed with the output of the one before."""

    name: str
    input_shape: Shape
    classes: int

    @abstractmethod
    def size(self) -> int:
        """Number of networks."""

    @abstractmethod
    def blocks(self) -> list[BlockSpec]:
        """Every distinct block that any of the networks contains."""

    @abstractmethod
    def full_network(self) -> list[BlockSpec]:
        """The largest network: nothing pruned, nothing skipped."""

    @abstractmethod
    def smallest_network(self) -> list[BlockSpec]:
        """The smallest network."""

    @abstractmethod
    def random_network(self, draw: random.Random) -> list[BlockSpec]:
        """A network at random."""

    @abstractmethod
    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block, in the form that ships or in the form that this space's networks are trained in."""

    def parameters(self, network: Sequence[BlockSpec] | None = None, *, deployed: bool = True) -> int:
        """Weights and biases, and in the training form the scale and shift of norms; of the full network by default."""
        return sum(self.counts(spec, deployed=deployed).params for spec in network or self.full_network())

    def macs(self, network: Sequence[BlockSpec] | None = None, *, deployed: bool = True) -> int:
        """Multiply-accumulates of one inference: convolutions and linear layers; of the full network by default."""
        return sum(self.counts(spec, deployed=deployed).macs for spec in network or self.full_network())


class Span(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many channels there are somewhere in a network: so many, and so many for each channel of some groups."""

    fixed: int = 0
    terms: tuple[tuple[int, int | float], ...] = ()
    """index of a group, channels here for each of its own; several where values are concatenated, a share where one is split"""

    def at(self, widths: Sequence[Any]) -> Any:
        """Channels at these widths of the groups, which may be tensors."""
        return self.fixed + sum(times * widths[group] for group, times in self.terms)


class Site(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place in a network where a block runs, with where its widths come from."""

    spec: BlockSpec
    """the block at full width"""
    spans: tuple[Span, ...]
    """of each of its widths, in the order of the spec"""

    def at(self, widths: Sequence[int]) -> BlockSpec:
        """The block at these widths of the groups."""
        return self.spec.with_widths(**{name: round(span.at(widths)) for (name, _), span in zip(self.spec.widths, self.spans, strict=True)})


@dataclass(frozen=True, kw_only=True)
class Prunable(Space):
    """Networks of one structure with open widths: channels that must go together form a group, and each group has a width.

    The groups are ordered; a `Widths` has a width for each.
    """

    granularity: int = 8
    """channels between two widths that can ship"""

    @property
    @abstractmethod
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Name of each group, and its full width."""

    @abstractmethod
    def sites(self) -> list[Site]:
        """The blocks of the network in order."""

    @abstractmethod
    def module(self) -> "nn.Module":
        """The unpruned network in its training form; new weights are drawn from torch's global random state."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """All that determines the space, as JSON has it."""

    def width_choices(self, index: int) -> Widths:
        """Widths that a group can ship with, ascending; the full width is always one of them."""
        full = self.groups[index][1]
        return (*range(self.granularity, full, self.granularity), full)

    def full_widths(self) -> Widths:
        """Widths of the unpruned network."""
        return tuple(width for _, width in self.groups)

    def smallest_widths(self) -> Widths:
        """Widths of the smallest network."""
        return tuple(self.width_choices(index)[0] for index in range(len(self.groups)))

    def span_choices(self, span: Span) -> Widths:
        """What a span can be, ascending; where it depends on several groups, some values from the least to the most."""
        if len(span.terms) < 2:
            return tuple(round(span.fixed + sum(times * width for _, times in span.terms)) for width in self._choices(span))
        low, high = (round(span.at(widths)) for widths in (self.smallest_widths(), self.full_widths()))
        count = min(_MANY, (high - low) // self.granularity + 1)
        return tuple(sorted({low + round(k * (high - low) / max(1, count - 1)) for k in range(count)}))

    def _choices(self, span: Span) -> Widths:
        return self.width_choices(span.terms[0][0]) if span.terms else (0,)

    def network(self, widths: Sequence[int]) -> list[BlockSpec]:
        """Blocks of one network in order."""
        return [site.at(widths) for site in self.sites()]

    def size(self) -> int:
        """Number of networks."""
        return math.prod(len(self.width_choices(index)) for index in range(len(self.groups)))

    def blocks(self) -> list[BlockSpec]:
        """Each site at each combination of its widths."""
        specs = [
            site.spec.with_widths(**dict(zip((name for name, _ in site.spec.widths), widths, strict=True)))
            for site in self.sites()
            for widths in itertools.product(*map(self.span_choices, site.spans))
        ]
        return list(dict.fromkeys(specs))

    def full_network(self) -> list[BlockSpec]:
        """The network at full width."""
        return self.network(self.full_widths())

    def smallest_network(self) -> list[BlockSpec]:
        """The network at its narrowest."""
        return self.network(self.smallest_widths())

    def random_network(self, draw: random.Random) -> list[BlockSpec]:
        """A network of random widths, each equally likely."""
        return self.network(self.random_widths(draw))

    def random_widths(self, draw: random.Random) -> Widths:
        """Widths at random, each equally likely."""
        return tuple(draw.choice(self.width_choices(index)) for index in range(len(self.groups)))


class Layer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer of a chain, whose width is searched."""

    name: str
    """unique in the space; the name of the layer's module"""
    op: Literal["conv"] = "conv"
    """a RepVGG block: it ships as one convolution with bias and activation"""
    width: int
    """largest number of output channels"""
    kernel: Literal[3] = 3
    """side of the deployed kernel"""
    stride: int = 1
    """stride in both directions"""
    act: Literal["relu"] = "relu"
    """activation after the convolution"""


@final
@dataclass(frozen=True, kw_only=True)
class Chain(Prunable):
    """RepVGG networks of one depth whose layer widths are multiples of `granularity`, with a pooled linear classifier behind them."""

    layers: tuple[Layer, ...]

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """The layers."""
        return tuple((layer.name, layer.width) for layer in self.layers)

    def sites(self) -> list[Site]:
        """One a layer, then the head."""
        found, shape, before = [], self.input_shape, Span(fixed=self.input_shape[0])
        for index, layer in enumerate(self.layers):
            spec, after = ops.conv(shape, layer.width, kernel=layer.kernel, stride=layer.stride, act=layer.act), Span(terms=((index, 1),))
            found.append(Site(spec=spec, spans=(before, after)))
            shape, before = ops.output_shape(spec), after
        return [*found, Site(spec=ops.head(shape, self.classes), spans=(before, Span(fixed=self.classes)))]

    def record(self) -> dict[str, Any]:
        """Its fields."""
        return msgspec.json.decode(msgspec.json.encode(self))

    def module(self) -> "nn.Module":
        """RepVGG blocks one behind the other, then the head."""
        from search.network import build_network

        return build_network(self)

    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block; in its training form with the 1x1 branch and, where shapes allow, the identity branch."""
        return ops.counts(spec) if deployed else ops.repvgg_counts(spec)


@dataclass(frozen=True, kw_only=True)
class MultiBlock:
    """One kind of block at every hidden width that it can have: a multi-block of PRUNET, Section 4.1.1."""

    spec: BlockSpec
    """at its largest hidden width"""
    hidden: Widths = ()
    """hidden widths, ascending; none where nothing is open"""

    def blocks(self) -> list[BlockSpec]:
        """The block at each hidden width, ascending."""
        return [self.spec.with_widths(hidden=hidden) for hidden in self.hidden] or [self.spec]


@dataclass(frozen=True, kw_only=True)
class StochasticLayer:
    """A layer of which one block is chosen; all have the same input and output shape."""

    name: str
    """unique in the space"""
    options: tuple[MultiBlock, ...]
    """from the smallest kind of block to the largest"""
    skippable: bool = False
    """whether a network may do without the layer; its input and output shape are then equal"""

    def blocks(self) -> list[BlockSpec]:
        """Every block that can be chosen."""
        return [block for option in self.options for block in option.blocks()]


@final
@dataclass(frozen=True, kw_only=True)
class Layered(Space):
    """Networks with one block a layer, each chosen for itself; some layers can be skipped (PRUNET, Section 3.1)."""

    layers: tuple[StochasticLayer, ...]

    def size(self) -> int:
        """Number of networks: skipping a layer counts as one more choice."""
        return math.prod(len(layer.blocks()) + layer.skippable for layer in self.layers)

    def blocks(self) -> list[BlockSpec]:
        """Every choice of every layer, once."""
        return list(dict.fromkeys(block for layer in self.layers for block in layer.blocks()))

    def full_network(self) -> list[BlockSpec]:
        """The last option of each layer at its largest hidden width, nothing skipped."""
        return [layer.blocks()[-1] for layer in self.layers]

    def smallest_network(self) -> list[BlockSpec]:
        """The first option of each layer at its smallest hidden width; what can be skipped is."""
        return [layer.blocks()[0] for layer in self.layers if not layer.skippable]

    def random_network(self, draw: random.Random) -> list[BlockSpec]:
        """In each layer the kinds of block are equally likely, skipping being one, then the hidden widths of the kind.

        Were all blocks equally likely, a layer with hundreds of widths would hardly ever be skipped, and all networks were equally deep.
        """
        drawn = (draw.choice([*layer.options, None] if layer.skippable else layer.options) for layer in self.layers)
        return [draw.choice(option.blocks()) for option in drawn if option is not None]

    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block; trained with one norm a convolution."""
        return ops.counts(spec, deployed=deployed)


@final
@dataclass(frozen=True, kw_only=True)
class Fixed(Space):
    """One network with a name."""

    network: tuple[BlockSpec, ...]
    trained_as: Literal["plain", "repvgg"] = "plain"
    """how a `conv` is trained: with one norm, or as a RepVGG block"""

    def size(self) -> int:
        """One."""
        return 1

    def blocks(self) -> list[BlockSpec]:
        """The network's blocks, each once."""
        return list(dict.fromkeys(self.network))

    def full_network(self) -> list[BlockSpec]:
        """The network."""
        return list(self.network)

    def smallest_network(self) -> list[BlockSpec]:
        """The network."""
        return list(self.network)

    def random_network(self, draw: random.Random) -> list[BlockSpec]:
        """The network."""
        return list(self.network)

    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block; trained as `trained_as` says."""
        return ops.repvgg_counts(spec) if self.trained_as == "repvgg" and not deployed else ops.counts(spec, deployed=deployed)


def check_input(name: str, *, classes: int, resolution: int, halvings: int) -> None:
    """Refuse an input that no network of a space can take.

    Raises:
        SearchError: fewer than two classes, or an image that the strides leave no pixel of.
    """
    if classes < 2:
        raise SearchError(f"a classifier needs at least 2 classes, found {classes}")
    if resolution < 2**halvings:
        raise SearchError(f"{name} halves its input {halvings} times: the resolution must be at least {2**halvings}, found {resolution}")
