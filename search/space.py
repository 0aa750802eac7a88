"""Interface of search spaces and their networks. The kinds of space are in `search.spaces`. Needs no torch."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from latency.block import BlockSpec
from latency.values import Kept
from search.ops import ModelSize, Shape

if TYPE_CHECKING:
    from torch import nn


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network of a space: the values of everything that is open. Equal choices have equal JSON."""

    widths: dict[str, Kept] = {}
    """channels, by name of the group or layer"""
    options: dict[str, str] = {}
    """chosen candidate, by name of the layer or edge; `skip` for none"""
    depths: dict[str, Kept] = {}
    """number of blocks, by name of the stage"""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            msgspec.structs.force_setattr(self, field, dict(sorted(getattr(self, field).items())))

    def __hash__(self) -> int:
        return hash(tuple(tuple(getattr(self, field).items()) for field in self.__struct_fields__))


@dataclass(frozen=True, kw_only=True)
class Space(ABC):
    """A set of networks, each a list of blocks in execution order."""

    name: str
    input_shape: Shape
    classes: int

    @abstractmethod
    def size(self) -> int:
        """Return the number of networks."""

    @abstractmethod
    def blocks(self) -> list[BlockSpec]:
        """Return every distinct block to measure: those of all networks, or a grid for interpolation."""

    @abstractmethod
    def largest(self) -> Choice:
        """Return the largest network: nothing pruned, nothing skipped."""

    @abstractmethod
    def smallest(self) -> Choice:
        """Return the smallest network."""

    @abstractmethod
    def random(self, draw: random.Random) -> Choice:
        """Draw a network at random."""

    @abstractmethod
    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """Return the blocks of a network in deployed form, in execution order.

        Args:
            choice: the network; the largest by default.

        Raises:
            SearchError: the choice does not belong to this space.
        """

    @abstractmethod
    def module(self, choice: Choice | None = None) -> "nn.Module":
        """Return a network in training form; its weights are drawn from torch's global random state.

        Args:
            choice: the network; the largest by default.

        Raises:
            SearchError: the choice does not belong to this space.
        """

    @abstractmethod
    def deployed(self, choice: Choice | None = None) -> "nn.Module":
        """Return a network in deployed form, with every norm folded and random weights."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return everything that determines the space, as JSON values; `spaces.from_record` is the inverse."""

    @abstractmethod
    def counts(self, spec: BlockSpec, *, deployed: bool) -> ModelSize:
        """Return the size of one block, in deployed form or in this space's training form."""

    @property
    def serial(self) -> bool:
        """Whether a network is a plain sequence of its blocks."""
        return True

    def parameters(self, network: Sequence[BlockSpec] | None = None, *, deployed: bool = True) -> int:
        """Return the number of weights and biases, in training form also scale and shift of norms.

        Of the largest network by default.
        """
        return sum(self.counts(spec, deployed=deployed).params for spec in network or self.network())

    def macs(self, network: Sequence[BlockSpec] | None = None, *, deployed: bool = True) -> int:
        """Return the multiply-accumulates of convolutions and linear layers per inference.

        Of the largest network by default.
        """
        return sum(self.counts(spec, deployed=deployed).macs for spec in network or self.network())
