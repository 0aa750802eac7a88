"""Spaces of cells: a small graph of operations, repeated throughout a network (NAS-Bench-201, Dong and Yang 2020)."""

import functools
import itertools
import random
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import msgspec

from latency.block import BlockSpec
from search import ops
from search.cell_graph import CONV1, CONV3, EDGES, NODES, NONE, OPTIONS, POOL, SKIP, SUM, Value, values_of
from search.errors import SearchError
from search.ops import ModelSize, Shape
from search.space import Choice, Space
from search.spaces.checks import check_input

if TYPE_CHECKING:
    from torch import nn

KINDS = (CONV1, CONV3, POOL, SUM)
"""Operations that run in a cell."""
STAGES = 3
MAX_CHANNELS = 4096
"""Maximum number of channels of the first stage."""
MAX_CELLS = 1000
"""Maximum number of cells per stage."""


def edge(source: int, target: int) -> str:
    """Return the name of an edge in a `Choice`."""
    return f"{source}-{target}"


@final
@dataclass(frozen=True, kw_only=True)
class Cells(Space):
    """A stem, three stages of equal cells with a reduction before the second and the third, and a classifier.

    A cell has four nodes and an edge from each node to each later one. The first node is the input, each other node is
    the sum of its edges, and the last is the output. A `Choice` has an option for each edge, named by `edge`. Edges on
    no path from input to output are unused: they are neither built nor counted, except in `nominal`.
    """

    channels: int = 16
    """channels of the first stage; the next stages have twice and four times as many"""
    cells: int = 5
    """cells of each stage"""

    def size(self) -> int:
        """Number of cells, including those with no path from input to output."""
        return len(OPTIONS) ** len(EDGES)

    def choices(self) -> Iterator[Choice]:
        """Yield every network in the order of the options, the last edge changing fastest."""
        for options in itertools.product(OPTIONS, repeat=len(EDGES)):
            yield self.of(options)

    def largest(self) -> Choice:
        """The cell with a 3x3 convolution on every edge."""
        return self.of((CONV3,) * len(EDGES))

    def smallest(self) -> Choice:
        """The cell whose output is its input."""
        return self.of(SKIP if ends == (0, NODES - 1) else NONE for ends in EDGES)

    def random(self, draw: random.Random) -> Choice:
        """Draw uniformly from the networks whose output depends on their input."""
        while not self.connected(choice := self.of(draw.choice(OPTIONS) for _ in EDGES)):
            pass
        return choice

    def parse(self, text: str) -> Choice:
        """Parse an architecture string of the benchmark, `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`.

        Raises:
            SearchError: the text is not an architecture of this space.
        """
        nodes = [re.findall(r"([^|~]+)~(\d+)", node) for node in text.split("+")]
        options = {(int(source), target): option for target, node in enumerate(nodes, 1) for option, source in node}
        choice = Choice(options={edge(*ends): option for ends, option in options.items()})
        if options.keys() != set(EDGES) or not set(options.values()) <= set(OPTIONS) or self.text(choice) != text:
            wanted = self.text(self.largest())
            raise SearchError(
                f"{text!r} is not an architecture of {self.name}: expected such as {wanted}, of {', '.join(OPTIONS)}"
            )
        return choice

    def text(self, choice: Choice) -> str:
        """Return the benchmark's architecture string; the inverse of `parse`."""
        options = self._options(choice)
        nodes = (
            "".join(f"|{options[source, target]}~{source}" for source in range(target)) + "|"
            for target in range(1, NODES)
        )
        return "+".join(nodes)

    def connected(self, choice: Choice) -> bool:
        """Return whether the output depends on the input."""
        return bool(self.used(choice))

    def used(self, choice: Choice) -> dict[tuple[int, int], str]:
        """Return the options of the edges on a path from input to output of the cell, in order.

        Raises:
            SearchError: the choice is not of this space.
        """
        options = {ends: option for ends, option in self._options(choice).items() if option != NONE}
        forward, backward = {0}, {NODES - 1}
        for source, target in options:  # edges are ordered, so all inputs of a node come before its outputs
            forward |= {target} if source in forward else set()
        for source, target in reversed(options):
            backward |= {source} if target in backward else set()
        return {ends: option for ends, option in options.items() if ends[0] in forward and ends[1] in backward}

    def shapes(self) -> tuple[Shape, ...]:
        """Return channels, height and width of each stage."""
        _, height, width = self.input_shape
        return tuple((self.channels << stage, -(-height // 2**stage), -(-width // 2**stage)) for stage in range(STAGES))

    def candidates(self, stage: int) -> dict[str, BlockSpec | None]:
        """Return the block of each option in a stage; None if nothing runs."""
        shape = self.shapes()[stage]
        convolutions = {
            option: ops.preact(shape, shape[0], kernel=kernel) for option, kernel in ((CONV1, 1), (CONV3, 3))
        }
        return {NONE: None, SKIP: None, **convolutions, POOL: ops.avg_pool(shape)}

    @property
    def stem(self) -> BlockSpec:
        """The convolution before the first cell."""
        return ops.conv(self.input_shape, self.channels, act="none")

    def reduction(self, stage: int) -> BlockSpec:
        """Return the reduction before a stage other than the first."""
        return ops.reduction(self.shapes()[stage - 1], self.shapes()[stage][0])

    @property
    def head(self) -> BlockSpec:
        """The classifier."""
        return ops.norm_head(self.shapes()[-1], self.classes)

    def runs(self, choice: Choice) -> list[str]:
        """Return the operations that run in a cell, of `KINDS`, in order.

        Each value is computed once: a node whose only input is a skip equals its source, and all pools of a value are
        one. A sum is counted even if a convolution reads it, since a runtime that fuses both saves little.
        """
        used, pooled, operations = self.used(choice), set[Value](), list[str]()
        values = values_of(used)
        for node in range(1, NODES):
            inputs = [(values[source], option) for (source, target), option in used.items() if target == node]
            convolutions = [option for _, option in inputs if option in (CONV1, CONV3)]
            pools = {value for value, option in inputs if option == POOL} - pooled
            pooled |= pools
            operations += [*convolutions, *(POOL for _ in pools), *[SUM] * (len(inputs) - 1)]
        return operations

    def kinds(self, stage: int) -> dict[str, BlockSpec]:
        """Return the block of each of `KINDS` in a stage."""
        blocks = {**self.candidates(stage), SUM: ops.add(self.shapes()[stage])}
        return {kind: block for kind in KINDS if (block := blocks[kind])}

    def cell(self, stage: int, choice: Choice) -> list[BlockSpec]:
        """Return the blocks of one cell of a stage, see `runs`."""
        kinds = self.kinds(stage)
        return [kinds[kind] for kind in self.runs(choice)]

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """Blocks that run, in order; only the classifier if the output does not depend on the input."""
        choice = self.largest() if choice is None else choice
        if not self.connected(choice):
            return [self.head]
        body = [
            block
            for stage in range(STAGES)
            for block in ([self.reduction(stage)] if stage else []) + self.cell(stage, choice) * self.cells
        ]
        return [self.stem, *body, self.head]

    def blocks(self) -> list[BlockSpec]:
        """Stem, operations and sum of each stage, reductions, and classifier."""
        specs = [self.stem]
        for stage in range(STAGES):
            specs += [self.reduction(stage)] if stage else []
            specs += self.kinds(stage).values()
        return [*specs, self.head]

    def nominal(self, choice: Choice) -> ModelSize:
        """Return the size of the training form as counted by the benchmark: all edges, used or not."""
        parts = _nominal(self)
        each = [parts[""], *(parts[option] for option in self._options(choice).values())]
        return ModelSize(sum(part.params for part in each), sum(part.macs for part in each))

    def module(self, choice: Choice | None = None) -> "nn.Module":
        """The network with its used edges, one norm per convolution."""
        from torch import nn

        from search.blocks import trained
        from search.cells import Cell

        used = self.used(self.largest() if choice is None else choice)
        parts: OrderedDict[str, nn.Module] = OrderedDict(stem=trained(self.stem))
        for stage in range(STAGES):
            if stage:
                parts[f"reduction{stage}"] = trained(self.reduction(stage))
            parts[f"stage{stage}"] = nn.Sequential(*(Cell(used, self.candidates(stage)) for _ in range(self.cells)))
        parts["head"] = trained(self.head)
        return nn.Sequential(parts)

    @property
    def serial(self) -> bool:
        """False: nodes have several inputs."""
        return False

    def deployed(self, choice: Choice | None = None) -> "nn.Module":
        """The fused network."""
        import torch

        from reparam import fuse

        return fuse(self.module(choice), torch.zeros(1, *self.input_shape))

    def record(self) -> dict[str, Any]:
        """The fields of the space."""
        return {"kind": "cells", **msgspec.json.decode(msgspec.json.encode(self))}

    def counts(self, spec: BlockSpec, *, deployed: bool) -> ModelSize:
        """Size of one block; the training form has one norm per convolution."""
        return ops.counts(spec, deployed=deployed)

    def of(self, options: Iterable[str]) -> Choice:
        """Return the network with the given options of the edges, in the order of `EDGES`."""
        return Choice(options={edge(*ends): option for ends, option in zip(EDGES, options, strict=True)})

    def _options(self, choice: Choice) -> Mapping[tuple[int, int], str]:
        """Return the option of each edge, in order."""
        names = [edge(*ends) for ends in EDGES]
        if choice.widths or choice.depths or sorted(choice.options) != sorted(names):
            raise SearchError(
                f"{self.name}: a choice has an option for each of the edges {', '.join(names)}, found {choice}"
            )
        for name, option in choice.options.items():
            if option not in OPTIONS:
                raise SearchError(f"{self.name}: edge {name} has the options {', '.join(OPTIONS)}, found {option}")
        return {ends: choice.options[edge(*ends)] for ends in EDGES}


@functools.cache
def _nominal(space: Cells) -> dict[str, ModelSize]:
    """Return training sizes.

    Of each option on one edge of every cell, and under "" of the network outside the cells.
    """

    def size(blocks: list[BlockSpec], times: int) -> ModelSize:
        each = [space.counts(block, deployed=False) for block in blocks]
        return ModelSize(times * sum(part.params for part in each), times * sum(part.macs for part in each))

    stages = [space.candidates(stage) for stage in range(STAGES)]
    sizes = {option: size([block for stage in stages if (block := stage[option])], space.cells) for option in OPTIONS}
    return {**sizes, "": size([space.stem, *(space.reduction(stage) for stage in range(1, STAGES)), space.head], 1)}


_PRESETS = {"nasbench201": (32, 16, 5), "nasbench201-small": (16, 8, 1)}
"""Resolution, channels and cells per stage: the benchmark's, and a preset small enough to search in minutes on a
CPU."""


def names() -> tuple[str, ...]:
    """Return the names that `named` knows."""
    return tuple(_PRESETS)


def named(
    name: str,
    *,
    classes: int = 10,
    resolution: int | None = None,
    channels: int | None = None,
    cells: int | None = None,
) -> Cells:
    """Return a space of cells by its name.

    Args:
        name: one of `names()`.
        classes: number of classes.
        resolution: height and width of the input in pixels; the preset's by default.
        channels: channels of the first stage; the preset's by default.
        cells: cells of each stage; the preset's by default.

    Raises:
        SearchError: a number is out of range.
    """
    own_resolution, own_channels, own_cells = _PRESETS[name]
    side = own_resolution if resolution is None else resolution
    width = own_channels if channels is None else channels
    repeated = own_cells if cells is None else cells
    check_input(name, classes=classes, resolution=side, halvings=STAGES - 1)
    for flag, number, most in (("--channels", width, MAX_CHANNELS), ("--cells", repeated, MAX_CELLS)):
        if not 1 <= number <= most:
            raise SearchError(f"{name}: {flag} must be from 1 to {most}, found {number}")
    return Cells(name=name, input_shape=(3, side, side), classes=classes, channels=width, cells=repeated)
