"""A cell as a module: a small graph of operations; see `search.spaces.cells`."""

from collections.abc import Mapping
from typing import final

import torch
from torch import nn

from latency import BlockSpec
from reparam.blocks import Image
from search import blocks


@final
class Cell(nn.Module):
    """A node is the sum of its edges; the first one is the input, the last one the output, which is 0 without edges.

    Args:
        edges: block of each edge by its source and target node, with one norm a convolution; None hands its input on.
        nodes: number of nodes.
    """

    def __init__(self, edges: Mapping[tuple[int, int], BlockSpec | None], *, nodes: int) -> None:
        super().__init__()
        self.ends, self.nodes = tuple(edges), nodes
        for (source, target), block in edges.items():
            self.add_module(f"edge{source}{target}", blocks.trained(block) if block else nn.Identity())

    def forward(self, x: Image) -> Image:
        """Float [batch, channels, h, w], and the same back."""
        nodes: list[Image | None] = [x]
        for node in range(1, self.nodes):
            value = None
            for source, target in self.ends:
                if target == node:
                    made = self.get_submodule(f"edge{source}{target}")(nodes[source])
                    value = made if value is None else value + made
            nodes.append(value)
        return torch.zeros_like(x) if nodes[-1] is None else nodes[-1]
