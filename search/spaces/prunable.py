"""Spaces of widths: networks of one structure whose groups of channels are open."""

import itertools
import math
import random
from abc import abstractmethod
from collections.abc import Sequence
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


class Site(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place in a network where a block runs, with where its widths come from."""

    spec: BlockSpec
    """the block at full width"""
    spans: tuple[Span, ...]
    """of each of its widths, in the order of the spec"""

    def at(self, widths: Sequence[int]) -> BlockSpec:
        """The block at these widths of the groups."""
        channels = tuple((name, round(span.at(widths))) for (name, _), span in zip(self.spec.widths, self.spans, strict=True))
        return msgspec.structs.replace(self.spec, widths=channels)


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

    The groups are ordered; a `Widths` has a width for each, a `Choice` too, by name.
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

    def choice(self, widths: Sequence[int]) -> Choice:
        """The network of these widths of the groups."""
        return Choice(widths={name: width for (name, _), width in zip(self.groups, widths, strict=True)})

    def widths(self, choice: Choice) -> Widths:
        """The inverse of `choice`.

        Raises:
            SearchError: the choice is not of this space.
        """
        groups = dict(self.groups)
        if choice.options or choice.depths or choice.widths.keys() != groups.keys():
            raise SearchError(f"{self.name} has the groups {', '.join(groups)}: a choice has a width for each, found {_words(choice)}")
        for name, width in choice.widths.items():
            if not 1 <= width <= groups[name]:
                raise SearchError(f"{self.name}: group {name} has 1 to {groups[name]} channels, found {width}")
        return tuple(choice.widths[name] for name in groups)

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """Blocks of one network in order."""
        widths = self.full_widths() if choice is None else self.widths(choice)
        return [site.at(widths) for site in self.sites()]

    def module(self, choice: Choice | None = None) -> "nn.Module":
        """The unpruned network; with a `ChannelMask` behind every group that loses channels, of which the first ones stay."""
        from search import masks

        if choice is None:
            return self.unpruned()
        widths = {name: (width, full) for (name, full), width in zip(self.groups, self.widths(choice), strict=True)}
        return masks.narrowed(self.unpruned(), self.input_shape, widths)

    def size(self) -> int:
        """Number of networks."""
        return math.prod(len(self.width_choices(index)) for index in range(len(self.groups)))

    def blocks(self) -> list[BlockSpec]:
        """Each site at each combination of its widths."""
        specs = [
            site.spec.with_widths(**dict(zip((name for name, _ in site.spec.widths), widths, strict=True)))
            for site in self.sites()
            for widths in itertools.product(*self.axes(site))
        ]
        return list(dict.fromkeys(specs))

    def largest(self) -> Choice:
        """The network at full width."""
        return self.choice(self.full_widths())

    def smallest(self) -> Choice:
        """The network at its narrowest."""
        return self.choice(self.smallest_widths())

    def random(self, draw: random.Random) -> Choice:
        """A network of random widths, each equally likely."""
        return self.choice([draw.choice(self.width_choices(index)) for index in range(len(self.groups))])


def _words(choice: Choice) -> str:
    return ", ".join(f"{name}={value}" for part in (choice.widths, choice.options, choice.depths) for name, value in part.items()) or "none"
