"""Supernets of cells: the weighted sum of all candidates of each edge, any of which can be removed."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latency import BlockSpec
from reparam.blocks import Image
from reparam.typed_torch import to_list
from search.blocks import trained
from search.spaces.cells import EDGES, NODES, NONE, OPTIONS, SKIP, STAGES, Cells

Alphas = Float[Tensor, "edges options"]


@final
class MixedCell(nn.Module):
    """A cell whose edges are weighted sums of all candidates.

    Args:
        candidates: block of each option; None for options without computation.
        skip_dropout: dropout rate after a skip in training.
    """

    def __init__(self, candidates: dict[str, BlockSpec | None], *, skip_dropout: float) -> None:
        super().__init__()
        self.skip = nn.Dropout(skip_dropout)
        self.edges = nn.ModuleList(
            nn.ModuleDict({name: trained(block) for name, block in candidates.items() if block}) for _ in EDGES
        )
        self.removed: tuple[int, int] | None = None
        """edge and option that are disabled in this cell"""

    def forward(self, x: Image, weights: Alphas, runs: tuple[tuple[int, ...], ...]) -> Image:
        """Map float [batch, channels, h, w] to the same shape.

        Args:
            x: the image.
            weights: weight of every candidate.
            runs: options that run on each edge.
        """
        nodes = [x]
        for node in range(1, NODES):
            value = None
            for index, (source, target) in enumerate(EDGES):
                if target == node:
                    for option in runs[index]:
                        if (index, option) != self.removed:
                            term = weights[index, option] * self._candidate(index, option, nodes[source])
                            value = term if value is None else value + term
            nodes.append(torch.zeros_like(x) if value is None else value)
        return nodes[-1]

    def _candidate(self, edge: int, option: int, x: Image) -> Image:
        name = OPTIONS[option]
        candidate = self.skip if name == SKIP else self.get_submodule(f"edges.{edge}.{name}")
        output: Image = candidate(x)
        return output


@final
class CellSupernet(nn.Module):
    """All cells of a space at once.

    Each edge sums its candidates weighted by `weigh(alpha)`, with alpha shared by all cells.

    Args:
        space: the space of cells.
        alpha: initial value for every candidate.
        weigh: maps alphas [edges, options] to weights of the same shape; the weight of `none` has no direct effect.
        skip_dropout: see `MixedCell`.
    """

    kept: Tensor

    def __init__(
        self, space: Cells, *, alpha: float, weigh: Callable[[Tensor], Tensor], skip_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((len(EDGES), len(OPTIONS)), alpha))
        self.weigh = weigh
        self.register_buffer("kept", torch.ones(len(EDGES), len(OPTIONS), dtype=torch.bool))
        parts: OrderedDict[str, nn.Module] = OrderedDict(stem=trained(space.stem))
        for stage in range(STAGES):
            if stage:
                parts[f"reduction{stage}"] = trained(space.reduction(stage))
            for number in range(space.cells):
                parts[f"cell{stage}_{number}"] = MixedCell(space.candidates(stage), skip_dropout=skip_dropout)
        parts["head"] = trained(space.head)
        self.body = nn.Sequential(parts)

    @property
    def cells(self) -> list[MixedCell]:
        """All cells, in order."""
        return [module for module in self.body if isinstance(module, MixedCell)]

    def forward(self, x: Image) -> Float[Tensor, "batch classes"]:
        """Map images [batch, 3, h, w] to logits."""
        weights = self.weigh(self.alpha.masked_fill(~self.kept, 0.0))
        none = OPTIONS.index(NONE)
        rows: list[list[bool]] = to_list(self.kept)
        runs = tuple(tuple(option for option, kept in enumerate(row) if kept and option != none) for row in rows)
        for module in self.body:
            x = module(x, weights, runs) if isinstance(module, MixedCell) else module(x)
        return x

    @contextlib.contextmanager
    def without(self, edge: int, option: int, *, cell: MixedCell | None = None) -> Generator[None, None, None]:
        """Remove one candidate, from all cells or from one, within the context.

        Equivalent to setting its alpha to 0.
        """
        cells = self.cells if cell is None else [cell]
        for affected in cells:
            affected.removed = (edge, option)
        try:
            yield
        finally:
            for affected in cells:
                affected.removed = None
