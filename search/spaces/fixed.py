"""Single networks."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import msgspec

from latency.block import BlockSpec
from search import ops
from search.errors import SearchError
from search.ops import ModelSize
from search.space import Choice, Space

if TYPE_CHECKING:
    from torch import nn


@final
@dataclass(frozen=True, kw_only=True)
class Fixed(Space):
    """A single named network; its only choice is the empty one."""

    sequence: tuple[BlockSpec, ...]
    """blocks in order"""
    trained_as: Literal["plain", "repvgg"] = "plain"
    """training form of a `conv`: with one norm, or a RepVGG block"""

    def size(self) -> int:
        """Return 1."""
        return 1

    def blocks(self) -> list[BlockSpec]:
        """The distinct blocks of the network."""
        return list(dict.fromkeys(self.sequence))

    def largest(self) -> Choice:
        """The empty choice."""
        return Choice()

    def smallest(self) -> Choice:
        """The empty choice."""
        return Choice()

    def random(self, draw: random.Random) -> Choice:
        """The empty choice."""
        return Choice()

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """The blocks of the network in order."""
        self._require_empty(choice)
        return list(self.sequence)

    def module(self, choice: Choice | None = None) -> "nn.Sequential":
        """The network in its training form, one module per block.

        `reparam.fuse` turns its weights into those of the deployed form.
        """
        from torch import nn

        from search import blocks

        self._require_empty(choice)
        make = blocks.trained_as_repvgg if self.trained_as == "repvgg" else blocks.trained
        return nn.Sequential(*map(make, self.sequence))

    def deployed(self, choice: Choice | None = None) -> "nn.Sequential":
        """The deployed network, one module per block."""
        from search.blocks import serial

        return serial(self.network(choice))

    def record(self) -> dict[str, Any]:
        """The fields of the space, with blocks as their keys."""
        blocks = [spec.key for spec in self.sequence]
        facts = {
            "name": self.name,
            "input_shape": self.input_shape,
            "classes": self.classes,
            "trained_as": self.trained_as,
        }
        return msgspec.json.decode(msgspec.json.encode({"kind": "fixed", **facts, "sequence": blocks}))

    def counts(self, spec: BlockSpec, *, deployed: bool) -> ModelSize:
        """Size of one block; its training form depends on `trained_as`."""
        return (
            ops.repvgg_counts(spec)
            if self.trained_as == "repvgg" and not deployed
            else ops.counts(spec, deployed=deployed)
        )

    def stages(self) -> dict[str, list[str]]:
        """Runs of blocks that can be left out, each with the block before it, by their names in `module`.

        See `prunable.Stage`.
        """
        runs: list[list[str]] = []
        for index, spec in enumerate(self.sequence):
            before = self.sequence[index - 1]
            if (
                index
                and ops.keeps_width(spec)
                and before.op == spec.op
                and ops.output_shape(before) == ops.output_shape(spec)
            ):
                runs[-1].append(str(index))
            else:
                runs.append([str(index)])
        deep = [blocks for blocks in runs if len(blocks) > 1]
        return {f"stage{number}": blocks for number, blocks in enumerate(deep, 1)}

    def _require_empty(self, choice: Choice | None) -> None:
        if choice is not None and choice != Choice():
            raise SearchError(f"{self.name} is a single network: nothing of it can be chosen, found {choice}")
