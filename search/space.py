"""What every search space can say of any of its networks. The kinds of space are in `search.spaces`. Needs no torch."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from latency.block import BlockSpec
from latency.values import Kept
from search.ops import Counts, Shape

if TYPE_CHECKING:
    from torch import nn


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network of a space: everything that was open, decided. Equal choices have equal JSON, whatever order they were made in."""

    widths: dict[str, Kept] = {}
    """channels, by the name of the group or layer whose width is open"""
    options: dict[str, str] = {}
    """which candidate runs, by the name of the layer or edge; `skip` where nothing does"""
    depths: dict[str, Kept] = {}
    """number of blocks, by the name of the stage"""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            msgspec.structs.force_setattr(self, field, dict(sorted(getattr(self, field).items())))

    def __hash__(self) -> int:
        return hash(tuple(tuple(getattr(self, field).items()) for field in self.__struct_fields__))


@dataclass(frozen=True, kw_only=True)
class Space(ABC):
    """A set of networks, each the blocks that run when it does, in order."""

    name: str
    input_shape: Shape
    classes: int

    @abstractmethod
    def size(self) -> int:
        """Number of networks."""

    @abstractmethod
    def blocks(self) -> list[BlockSpec]:
        """Every distinct block to measure: those of all networks, or a grid that the others are interpolated from."""

    @abstractmethod
    def largest(self) -> Choice:
        """The largest network: nothing pruned, nothing skipped."""

    @abstractmethod
    def smallest(self) -> Choice:
        """The smallest network."""

    @abstractmethod
    def random(self, draw: random.Random) -> Choice:
        """A network at random."""

    @abstractmethod
    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """Blocks of a network as it ships, in the order in which they run.

        Args:
            choice: which; the largest by default.

        Raises:
            SearchError: it is not of this space.
        """

    @abstractmethod
    def module(self, choice: Choice | None = None) -> "nn.Module":
        """A network in its training form; its weights are drawn from torch's global random state.

        Args:
            choice: which; the largest by default.

        Raises:
            SearchError: it is not of this space.
        """

    @abstractmethod
    def deployed(self, choice: Choice | None = None) -> "nn.Module":
        """A network in the form that ships, every norm folded, with random weights."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """All that determines the space, as JSON has it; `spaces.from_record` is the inverse."""

    @abstractmethod
    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block, in the form that ships or in the form that this space's networks are trained in."""

    @property
    def serial(self) -> bool:
        """Whether a network is its blocks one behind the other, each fed with the output of the one before and nothing between them."""
        return True

    def parameters(self, network: Sequence[BlockSpec] | None = None, *, deployed: bool = True) -> int:
        """Weights and biases, and in the training form the scale and shift of norms; of the largest network by default."""
        return sum(self.counts(spec, deployed=deployed).params for spec in network or self.network())

    def macs(self, network: Sequence[BlockSpec] | None = None, *, deployed: bool = True) -> int:
        """Multiply-accumulates of one inference: convolutions and linear layers; of the largest network by default."""
        return sum(self.counts(spec, deployed=deployed).macs for spec in network or self.network())
