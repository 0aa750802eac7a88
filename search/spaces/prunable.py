"""Spaces of widths: networks of one structure whose channel groups have open widths."""

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

_MAX_VALUES = 33
"""Maximum number of values of a width that depends on several groups."""

Widths = tuple[int, ...]
"""Width of each group of a prunable space, in the order of its groups."""


class AffineWidth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A channel count as an affine function of group widths."""

    fixed: int = 0
    terms: tuple[tuple[int, int | float], ...] = ()
    """group indices with their factors; several groups if values are concatenated, a fractional factor if a value is
    split"""

    def at(self, widths: Sequence[Any]) -> Any:
        """Return the channel count at the given group widths, which may be tensors."""
        return self.fixed + sum(times * widths[group] for group, times in self.terms)


class Site(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A place in a network where a block runs, with its widths as functions of group widths."""

    spec: BlockSpec
    """the block at full width"""
    spans: tuple[AffineWidth, ...]
    """each width as a function of group widths, in the order of the spec"""
    joins: bool = False
    """whether it is a convolution on a shortcut, which runs only if its input and output widths differ"""

    def at(self, widths: Sequence[int]) -> BlockSpec | None:
        """Return the block at the given group widths, or None if none runs."""
        channels = tuple(
            (name, round(span.at(widths))) for (name, _), span in zip(self.spec.widths, self.spans, strict=True)
        )
        return self.of(msgspec.structs.replace(self.spec, widths=channels))

    def of(self, spec: BlockSpec) -> BlockSpec | None:
        """Return the block, or None if it is a joining convolution between equal widths."""
        return None if self.joins and len({width for _, width in spec.widths}) == 1 else spec


class StageBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A block of a stage."""

    module: str
    """name of its module in the network"""
    sites: tuple[int, ...]
    """indices of the sites that run in it"""


class Stage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consecutive blocks, of which the first `depth` run.

    Each block but the first adds its input to its output and keeps the shape, so it can be left out.
    """

    name: str
    blocks: tuple[StageBlock, ...]


Condition = tuple[str, Widths]
"""A stage, and the depths at which something runs."""


@runtime_checkable
class HasSites(Protocol):
    """A space with blocks of open widths."""

    @property
    def granularity(self) -> int:
        """Channels between two widths that can ship."""
        ...

    def axes(self, site: Site) -> tuple[Widths, ...]:
        """Return the choices of each width of a site, ascending."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prunable(Space):
    """Networks of one structure with open widths.

    Channels that must be removed together form a group, and each group has a width.

    The groups are ordered; a `Widths` has a width for each. A `Choice` has the depth of each stage and, by name, the
    width of each group in the network; groups of blocks left out by its depths are missing. All blocks of a stage
    without a depth run.
    """

    granularity: int = 8
    """channels between two widths that can ship"""

    @property
    @abstractmethod
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Name and full width of each group."""

    @abstractmethod
    def sites(self) -> list[Site]:
        """Return the sites of the unpruned network in order."""

    @abstractmethod
    def unpruned(self) -> "nn.Module":
        """Return the network at full width in its training form.

        New weights are drawn from torch's global random state.
        """

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of open depth."""
        return ()

    def width_choices(self, index: int) -> Widths:
        """Return the widths that a group can ship with, ascending, including its full width."""
        full = self.groups[index][1]
        return (*range(self.granularity, full, self.granularity), full)

    def full_widths(self) -> Widths:
        """Return the widths of the unpruned network."""
        return tuple(width for _, width in self.groups)

    def smallest_widths(self) -> Widths:
        """Return the widths of the smallest network."""
        return tuple(self.width_choices(index)[0] for index in range(len(self.groups)))

    def span_choices(self, span: AffineWidth) -> Widths:
        """Return the values of a width, ascending.

        If it depends on several groups, a sample of values from the smallest to the largest.
        """
        if len(span.terms) < 2:
            return tuple(
                round(span.fixed + sum(times * width for _, times in span.terms)) for width in self._choices(span)
            )
        low, high = (round(span.at(widths)) for widths in (self.smallest_widths(), self.full_widths()))
        count = min(_MAX_VALUES, (high - low) // self.granularity + 1)
        return tuple(sorted({low + round(k * (high - low) / max(1, count - 1)) for k in range(count)}))

    def axes(self, site: Site) -> tuple[Widths, ...]:
        """Return the choices of each width of a site, ascending."""
        return tuple(map(self.span_choices, site.spans))

    def _choices(self, span: AffineWidth) -> Widths:
        return self.width_choices(span.terms[0][0]) if span.terms else (0,)

    def full_depths(self) -> dict[str, int]:
        """Return the depths of the unpruned network."""
        return {stage.name: len(stage.blocks) for stage in self.stages}

    def skipped(self, depths: Mapping[str, int]) -> list[StageBlock]:
        """Return the blocks that do not run at the given depths; all blocks of a stage without a depth run."""
        return [block for stage in self.stages for block in stage.blocks[depths.get(stage.name, len(stage.blocks)) :]]

    def sites_at(self, depths: Mapping[str, int]) -> list[Site]:
        """Return the sites of networks with the given depths, in order."""
        away = {site for block in self.skipped(depths) for site in block.sites}
        return [site for index, site in enumerate(self.sites()) if index not in away]

    def conditional_sites(self) -> list[tuple[Site, Condition | None]]:
        """Return the sites of all networks, each with the depths at which it exists; None for all depths."""
        conditions: list[Condition | None] = [None] * len(self.sites())
        for stage in self.stages:
            for number, block in enumerate(stage.blocks[1:], 2):
                for site in block.sites:
                    conditions[site] = stage.name, tuple(range(number, len(stage.blocks) + 1))
        return list(zip(self.sites(), conditions, strict=True))

    def at_depths(self, depths: Mapping[str, int]) -> "Prunable":
        """Return the space of widths of networks with the given depths.

        Groups that these networks lack have no effect.
        """
        assert not self.skipped(depths), f"{self.name} has no open depths"
        return self

    def owned_groups(self, blocks: Sequence[StageBlock]) -> set[int]:
        """Return the groups that no site outside the given blocks reads or produces."""
        away = {site for block in blocks for site in block.sites}
        used: dict[bool, set[int]] = {True: set(), False: set()}
        for index, site in enumerate(self.sites() if away else ()):
            used[index in away] |= {group for span in site.spans for group, _ in span.terms}
        return used[True] - used[False]

    def choice(self, widths: Sequence[int], depths: Mapping[str, int] | None = None) -> Choice:
        """Return the network with the given group widths and stage depths; full depths by default."""
        depths = self.full_depths() | dict(depths or {})
        gone = self.owned_groups(self.skipped(depths))
        named = zip(self.groups, widths, strict=True)
        return Choice(
            widths={name: width for index, ((name, _), width) in enumerate(named) if index not in gone}, depths=depths
        )

    def widths(self, choice: Choice) -> Widths:
        """Return the group widths of a choice, the inverse of `choice`.

        Groups that the network lacks have their full width.

        Raises:
            SearchError: the choice is not of this space.
        """
        full = self.full_depths()
        for name, depth in choice.depths.items():
            if not 1 <= depth <= full.get(name, 0):
                listed = ", ".join(f"{stage} of 1 to {most}" for stage, most in full.items()) or "none"
                raise SearchError(f"{self.name} has the depths {listed}: found {name}={depth}")
        gone = self.owned_groups(self.skipped(choice.depths))
        groups = {name: width for index, (name, width) in enumerate(self.groups) if index not in gone}
        if choice.options or choice.widths.keys() != groups.keys():
            raise SearchError(
                f"{self.name} has the groups {', '.join(groups)}: a choice has a width for each, "
                f"found {_listed(choice)}"
            )
        for name, width in choice.widths.items():
            if not 1 <= width <= groups[name]:
                raise SearchError(f"{self.name}: group {name} has 1 to {groups[name]} channels, found {width}")
        return tuple(choice.widths.get(name, width) for name, width in self.groups)

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """The blocks of one network in order."""
        widths = self.full_widths() if choice is None else self.widths(choice)
        blocks = (site.at(widths) for site in self.sites_at(choice.depths if choice else {}))
        return [block for block in blocks if block]

    def module(self, choice: Choice | None = None) -> "nn.Module":
        """The unpruned network with a `ChannelMask` after every group that loses channels; the first channels are kept.

        Blocks left out by its depths are identities.
        """
        from torch import nn

        from reparam.modules import named_modules
        from search import masks

        network = self.unpruned()
        if choice is None:
            return network
        widths = zip(self.groups, self.widths(choice), strict=True)
        named = dict(named_modules(network))
        for block in self.skipped(choice.depths):
            if block.module not in named:
                raise SearchError(f"the network has no block {block.module}: give the module that was searched")
            network.set_submodule(block.module, nn.Identity())
        self.insert_shortcuts(network, choice)
        kept = {name: (width, full) for (name, full), width in widths if name in choice.widths}
        return masks.narrowed(network, self.input_shape, kept, tied=self.free)

    @property
    def free(self) -> bool:
        """Whether layers that are added may differ in width.

        Networks may then have layers that the unpruned one lacks.
        """
        return False

    def output_groups(self, stage: Stage) -> tuple[str, ...]:
        """Return the output group of each block of a stage."""
        return tuple(self.groups[self.produced_groups(block)[-1]][0] for block in stage.blocks)

    def produced_groups(self, block: StageBlock) -> list[int]:
        """Return the groups that the layers of a block produce, in order."""
        sites = self.sites()
        return [group for site in block.sites for group, _ in sites[site].spans[-1].terms]

    def insert_shortcuts(self, network: "nn.Module", choice: Choice | None) -> None:
        """Insert the layers of a choice that the unpruned network lacks, in place.

        Without a choice, those of all choices.
        """

    def size(self) -> int:
        """Number of networks."""
        counts = [len(self.width_choices(index)) for index in range(len(self.groups))]
        total, inner = 1, set[int]()
        for stage in self.stages:
            each = [self.owned_groups([block]) for block in stage.blocks[1:]]
            deeper = itertools.accumulate(
                (math.prod(counts[group] for group in groups) for groups in each), operator.mul, initial=1
            )
            total *= sum(deeper)
            inner |= set().union(*each)
        return total * math.prod(count for group, count in enumerate(counts) if group not in inner)

    def blocks(self) -> list[BlockSpec]:
        """Every site at every combination of its widths."""
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
        """The narrowest network, with one block per stage."""
        return self.choice(self.smallest_widths(), dict.fromkeys(self.full_depths(), 1))

    def random(self, draw: random.Random) -> Choice:
        """A network of random widths and depths, each drawn uniformly."""
        widths = [draw.choice(self.width_choices(index)) for index in range(len(self.groups))]
        return self.choice(widths, {name: draw.randint(1, depth) for name, depth in self.full_depths().items()})


def _listed(choice: Choice) -> str:
    return (
        ", ".join(
            f"{name}={value}" for part in (choice.widths, choice.options, choice.depths) for name, value in part.items()
        )
        or "none"
    )
