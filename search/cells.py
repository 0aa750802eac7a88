"""A cell as a module: a small graph of operations; see `search.spaces.cells`."""

from collections.abc import Mapping
from typing import final

import torch
from torch import nn

from latency import BlockSpec
from reparam.blocks import Image
from search import blocks
from search.spaces.cells import NODES, POOL, Value, values_of


@final
class Cell(nn.Module):
    """A node is the sum of its edges; the first one is the input, the last one the output, which is 0 without edges.

    All pools of one value are computed once.

    Args:
        edges: option of each edge that is used, by its source and target node, in order.
        candidates: block of each option, with one norm a convolution; None hands its input on.
    """

    def __init__(self, edges: Mapping[tuple[int, int], str], candidates: Mapping[str, BlockSpec | None]) -> None:
        super().__init__()
        self.edges, self.values = dict(edges), values_of(edges)
        for (source, target), option in edges.items():
            block = candidates[option]
            self.add_module(f"edge{source}{target}", blocks.trained(block) if block else nn.Identity())

    def forward(self, x: Image) -> Image:
        """Float [batch, channels, h, w], and the same back."""
        nodes: list[Image | None] = [x]
        pools: dict[Value, Image] = {}
        for node in range(1, NODES):
            total = None
            for (source, target), option in self.edges.items():
                if target == node:
                    known = pools.get(self.values[source]) if option == POOL else None
                    made = self.get_submodule(f"edge{source}{target}")(nodes[source]) if known is None else known
                    if option == POOL:
                        pools[self.values[source]] = made
                    total = made if total is None else total + made
            nodes.append(total)
        return torch.zeros_like(x) if nodes[-1] is None else nodes[-1]
