"""Spaces of widths: networks of one structure whose groups of channels are open."""

import itertools
import math
import operator
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from latency.block import BlockSpec
from search.errors import SearchError
from search.space import Choice, Space

if TYPE_CHECKING:
    from torch import nn

_MANY = 33
"""Values of a span of several groups, at most."""

Widths = tuple[int, ...]
"""Channels of every group of a prunable space, in the order of its groups."""


class Span(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Number of channels somewhere in a network: a fixed part, and a multiple of the width of some groups."""

    fixed: int = 0
    terms: tuple[tuple[int, int | float], ...] = ()
    """index of a group, channels here for each of its own; several where values are concatenated, a share where one is split"""

    def at(self, widths: Sequence[Any]) -> Any:
        """Channels at these widths of the groups, which may be tensors."""
        return self.fixed + sum(times * widths[group] for group, times in self.terms)


class Site(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A place in a network where a block runs, with where its widths come from."""

    spec: BlockSpec
    """the block at full width"""
    spans: tuple[Span, ...]
    """of each of its widths, in the order of the spec"""
    joins: bool = False
    """it is a convolution on a shortcut, which is there only where its input and output width differ"""

    def at(self, widths: Sequence[int]) -> BlockSpec | None:
        """The block at these widths of the groups; None where there is none."""
        channels = tuple((name, round(span.at(widths))) for (name, _), span in zip(self.spec.widths, self.spans, strict=True))
        return self.of(msgspec.structs.replace(self.spec, widths=channels))

    def of(self, spec: BlockSpec) -> BlockSpec | None:
        """The block at its widths; None where there is none."""
        return None if self.joins and len({width for _, width in spec.widths}) == 1 else spec


class StageBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A block of a stage."""

    module: str
    """its name in the network"""
    sites: tuple[int, ...]
    """indices of the sites that run in it"""


class Stage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Blocks one behind the other, of which the first ones run: as many as the depth says.

    Every block but the first makes the shape that it reads, and adds what it reads, so it can be left out.
    """

    name: str
    blocks: tuple[StageBlock, ...]


Condition = tuple[str, Widths]
"""A stage, and those of its depths at which something runs."""


@runtime_checkable
class HasSites(Protocol):
    """A space with blocks of open widths."""

    @property
    def granularity(self) -> int:
        """Channels between two widths that can ship."""
        ...

    def axes(self, site: Site) -> tuple[Widths, ...]:
        """What each width of a site can be, ascending."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prunable(Space):
    """Networks of one structure with open widths: channels that must go together form a group, and each group has a width.

    The groups are ordered; a `Widths` has a width for each. A `Choice` has one, by name, for each group that the network has: those of
    blocks that its depths leave out are not there. It has the depth of every stage; where it has none, all blocks run.
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
    def unpruned(self) -> "nn.Module":
        """The network at full width in its training form; new weights are drawn from torch's global random state."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where the depth is open."""
        return ()

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

    def axes(self, site: Site) -> tuple[Widths, ...]:
        """What each width of a site can be, ascending."""
        return tuple(map(self.span_choices, site.spans))

    def _choices(self, span: Span) -> Widths:
        return self.width_choices(span.terms[0][0]) if span.terms else (0,)

    def full_depths(self) -> dict[str, int]:
        """Depths of the unpruned network."""
        return {stage.name: len(stage.blocks) for stage in self.stages}

    def skipped(self, depths: Mapping[str, int]) -> list[StageBlock]:
        """Blocks that do not run at these depths; all of a stage run that is not named."""
        return [block for stage in self.stages for block in stage.blocks[depths.get(stage.name, len(stage.blocks)) :]]

    def sites_at(self, depths: Mapping[str, int]) -> list[Site]:
        """The sites of its networks of these depths, in order."""
        away = {site for block in self.skipped(depths) for site in block.sites}
        return [site for index, site in enumerate(self.sites()) if index not in away]

    def conditional_sites(self) -> list[tuple[Site, Condition | None]]:
        """Every site of any of its networks, and at which depths it is there; None: at all."""
        found: list[Condition | None] = [None] * len(self.sites())
        for stage in self.stages:
            for number, block in enumerate(stage.blocks[1:], 2):
                for site in block.sites:
                    found[site] = stage.name, tuple(range(number, len(stage.blocks) + 1))
        return list(zip(self.sites(), found, strict=True))

    def at_depths(self, depths: Mapping[str, int]) -> "Prunable":
        """The space of the widths of its networks of these depths; a group that none of them has makes no difference there."""
        assert not self.skipped(depths), f"{self.name} has no open depths"
        return self

    def inside(self, blocks: Sequence[StageBlock]) -> set[int]:
        """Groups that no site outside of these blocks reads or makes."""
        away = {site for block in blocks for site in block.sites}
        used: dict[bool, set[int]] = {True: set(), False: set()}
        for index, site in enumerate(self.sites() if away else ()):
            used[index in away] |= {group for span in site.spans for group, _ in span.terms}
        return used[True] - used[False]

    def choice(self, widths: Sequence[int], depths: Mapping[str, int] | None = None) -> Choice:
        """The network of these widths of the groups and these depths of the stages, the full ones by default."""
        depths = self.full_depths() | dict(depths or {})
        gone = self.inside(self.skipped(depths))
        named = zip(self.groups, widths, strict=True)
        return Choice(widths={name: width for index, ((name, _), width) in enumerate(named) if index not in gone}, depths=depths)

    def widths(self, choice: Choice) -> Widths:
        """The inverse of `choice`; of a group that the network has not, the full width.

        Raises:
            SearchError: the choice is not of this space.
        """
        full = self.full_depths()
        for name, depth in choice.depths.items():
            if not 1 <= depth <= full.get(name, 0):
                known = ", ".join(f"{stage} of 1 to {most}" for stage, most in full.items()) or "none"
                raise SearchError(f"{self.name} has the depths {known}: found {name}={depth}")
        gone = self.inside(self.skipped(choice.depths))
        groups = {name: width for index, (name, width) in enumerate(self.groups) if index not in gone}
        if choice.options or choice.widths.keys() != groups.keys():
            raise SearchError(f"{self.name} has the groups {', '.join(groups)}: a choice has a width for each, found {_words(choice)}")
        for name, width in choice.widths.items():
            if not 1 <= width <= groups[name]:
                raise SearchError(f"{self.name}: group {name} has 1 to {groups[name]} channels, found {width}")
        return tuple(choice.widths.get(name, width) for name, width in self.groups)

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """Blocks of one network in order."""
        widths = self.full_widths() if choice is None else self.widths(choice)
        found = (site.at(widths) for site in self.sites_at(choice.depths if choice else {}))
        return [block for block in found if block]

    def module(self, choice: Choice | None = None) -> "nn.Module":
        """The unpruned network; with a `ChannelMask` behind every group that loses channels, of which the first ones stay.

        Blocks that its depths leave out are identities.
        """
        from torch import nn

        from search import masks

        network = self.unpruned()
        if choice is None:
            return network
        widths = zip(self.groups, self.widths(choice), strict=True)
        named = dict(network.named_modules())
        for block in self.skipped(choice.depths):
            if block.module not in named:
                raise SearchError(f"the network has no block {block.module}: give the module that was searched")
            network.set_submodule(block.module, nn.Identity())
        self.join(network, choice)
        kept = {name: (width, full) for (name, full), width in widths if name in choice.widths}
        return masks.narrowed(network, self.input_shape, kept, tied=self.free)

    @property
    def free(self) -> bool:
        """Whether layers that are added up have widths of their own: then a network may have layers that the unpruned one has not."""
        return False

    def made_by(self, stage: Stage) -> tuple[str, ...]:
        """Of each block of a stage the group that it makes."""
        return tuple(self.groups[self.outputs(block)[-1]][0] for block in stage.blocks)

    def outputs(self, block: StageBlock) -> list[int]:
        """The groups that the layers of a block make, in order."""
        sites = self.sites()
        return [group for site in block.sites for group, _ in sites[site].spans[-1].terms]

    def join(self, network: "nn.Module", choice: Choice | None) -> None:
        """Put in the layers of a choice that the unpruned network has not, in place; without a choice those of all choices."""

    def size(self) -> int:
        """Number of networks."""
        counts = [len(self.width_choices(index)) for index in range(len(self.groups))]
        total, inner = 1, set[int]()
        for stage in self.stages:
            each = [self.inside([block]) for block in stage.blocks[1:]]
            deeper = itertools.accumulate((math.prod(counts[group] for group in groups) for groups in each), operator.mul, initial=1)
            total *= sum(deeper)
            inner |= set().union(*each)
        return total * math.prod(count for group, count in enumerate(counts) if group not in inner)

    def blocks(self) -> list[BlockSpec]:
        """Each site at each combination of its widths."""
        specs = [
            site.spec.with_widths(**dict(zip((name for name, _ in site.spec.widths), widths, strict=True)))
            for site in self.sites()
            for widths in itertools.product(*self.axes(site))
        ]
        return list(dict.fromkeys(specs))

    def largest(self) -> Choice:
        """The network at full width and depth."""
        return self.choice(self.full_widths())

    def smallest(self) -> Choice:
        """The network at its narrowest, with one block a stage."""
        return self.choice(self.smallest_widths(), dict.fromkeys(self.full_depths(), 1))

    def random(self, draw: random.Random) -> Choice:
        """A network of random widths and depths, each equally likely."""
        widths = [draw.choice(self.width_choices(index)) for index in range(len(self.groups))]
        return self.choice(widths, {name: draw.randint(1, depth) for name, depth in self.full_depths().items()})


def _words(choice: Choice) -> str:
    return ", ".join(f"{name}={value}" for part in (choice.widths, choice.options, choice.depths) for name, value in part.items()) or "none"
