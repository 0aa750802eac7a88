"""Networks of cells as modules; see `search.spaces.cells` for which there are."""

from collections import OrderedDict
from typing import final

import torch
from torch import nn

from reparam.blocks import Image
from search import blocks
from search.space import Choice
from search.spaces.cells import NODES, STAGES, Cells


@final
class Cell(nn.Module):
    """A node is the sum of its edges, the first one the input and the last one the output; a node without edges is 0.

    Args:
        space: that it is of.
        stage: where it stands.
        choice: its edges.
    """

    def __init__(self, space: Cells, stage: int, choice: Choice) -> None:
        super().__init__()
        self.used, candidates = tuple(space.used(choice)), space.candidates(stage)
        for (source, target), option in space.used(choice).items():
            block = candidates[option]
            self.add_module(_name(source, target), blocks.trained(block) if block else nn.Identity())

    def forward(self, x: Image) -> Image:
        """Float [batch, channels, h, w], and the same back."""
        nodes: list[Image | None] = [x]
        for node in range(1, NODES):
            value = None
            for source, target in self.used:
                if target == node:
                    made = self.get_submodule(_name(source, target))(nodes[source])
                    value = made if value is None else value + made
            nodes.append(value)
        return torch.zeros_like(x) if nodes[-1] is None else nodes[-1]


@final
class CellNetwork(nn.Sequential):
    """Stem, stages of cells with reductions between them, classifier; one norm a convolution.

    Args:
        space: that it is of.
        choice: which network.
    """

    def __init__(self, space: Cells, choice: Choice) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict(stem=blocks.trained(space.stem))
        for stage in range(STAGES):
            if stage:
                parts[f"reduction{stage}"] = blocks.trained(space.reduction(stage))
            parts[f"stage{stage}"] = nn.Sequential(*(Cell(space, stage, choice) for _ in range(space.cells)))
        super().__init__(OrderedDict(**parts, head=blocks.trained(space.head)))


def _name(source: int, target: int) -> str:
    return f"edge{source}{target}"
