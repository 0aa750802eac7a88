"""Single networks."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import msgspec

from latency.block import BlockSpec
from search import ops
from search.errors import SearchError
from search.ops import Counts
from search.space import Choice, Space

if TYPE_CHECKING:
    from torch import nn


@final
@dataclass(frozen=True, kw_only=True)
class Fixed(Space):
    """One network with a name; its only choice is the empty one."""

    sequence: tuple[BlockSpec, ...]
    """its blocks, one behind the other"""
    trained_as: Literal["plain", "repvgg"] = "plain"
    """how a `conv` is trained: with one norm, or as a RepVGG block"""

    def size(self) -> int:
        """One."""
        return 1

    def blocks(self) -> list[BlockSpec]:
        """The network's blocks, each once."""
        return list(dict.fromkeys(self.sequence))

    def largest(self) -> Choice:
        """The network."""
        return Choice()

    def smallest(self) -> Choice:
        """The network."""
        return Choice()

    def random(self, draw: random.Random) -> Choice:
        """The network."""
        return Choice()

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """The network."""
        self._check(choice)
        return list(self.sequence)

    def module(self, choice: Choice | None = None) -> "nn.Sequential":
        """The network, one module a block; `reparam.fuse` of it has the weights of the form that ships."""
        from torch import nn

        from search import blocks

        self._check(choice)
        make = blocks.trained_as_repvgg if self.trained_as == "repvgg" else blocks.trained
        return nn.Sequential(*map(make, self.sequence))

    def deployed(self, choice: Choice | None = None) -> "nn.Sequential":
        """The network, one module a block."""
        from search.blocks import serial

        return serial(self.network(choice))

    def record(self) -> dict[str, Any]:
        """Its fields, blocks by their keys."""
        blocks = [spec.key for spec in self.sequence]
        facts = {"name": self.name, "input_shape": self.input_shape, "classes": self.classes, "trained_as": self.trained_as}
        return msgspec.json.decode(msgspec.json.encode({"kind": "fixed", **facts, "sequence": blocks}))

    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block; trained as `trained_as` says."""
        return ops.repvgg_counts(spec) if self.trained_as == "repvgg" and not deployed else ops.counts(spec, deployed=deployed)

    def stages(self) -> dict[str, list[str]]:
        """Blocks that can be left out, with the block before each run of them, by their names in `module`: see `prunable.Stage`."""
        found: list[list[str]] = []
        for index, spec in enumerate(self.sequence):
            before = self.sequence[index - 1]
            if index and ops.keeps_width(spec) and before.op == spec.op and ops.output_shape(before) == ops.output_shape(spec):
                found[-1].append(str(index))
            else:
                found.append([str(index)])
        deep = [blocks for blocks in found if len(blocks) > 1]
        return {f"stage{number}": blocks for number, blocks in enumerate(deep, 1)}

    def _check(self, choice: Choice | None) -> None:
        if choice is not None and choice != Choice():
            raise SearchError(f"{self.name} is a single network: nothing of it can be chosen, found {choice}")
