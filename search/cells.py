"""Cells as modules: small graphs of operations; see `search.spaces.cells`."""

from collections.abc import Mapping
from typing import final

import torch
from torch import nn

from latency import BlockSpec
from reparam.blocks import Image
from search import blocks
from search.cell_graph import NODES, POOL, Value, values_of


@final
class Cell(nn.Module):
    """A cell whose nodes are sums of their edges.

    The first is the input, the last the output, which is 0 without edges.

    Pools of the same value are computed once.

    Args:
        edges: option of each used edge, by source and target node, in order.
        candidates: block of each option, with one norm per convolution; None passes its input through.
    """

    def __init__(self, edges: Mapping[tuple[int, int], str], candidates: Mapping[str, BlockSpec | None]) -> None:
        super().__init__()
        self.edges, self.values = dict(edges), values_of(edges)
        for (source, target), option in edges.items():
            block = candidates[option]
            self.add_module(f"edge{source}{target}", blocks.trained(block) if block else nn.Identity())

    def forward(self, x: Image) -> Image:
        """Map float [batch, channels, h, w] to the same shape."""
        nodes: list[Image | None] = [x]
        pools: dict[Value, Image] = {}
        for node in range(1, NODES):
            total = None
            for (source, target), option in self.edges.items():
                if target == node:
                    cached = pools.get(self.values[source]) if option == POOL else None
                    output = self.get_submodule(f"edge{source}{target}")(nodes[source]) if cached is None else cached
                    if option == POOL:
                        pools[self.values[source]] = output
                    total = output if total is None else total + output
            nodes.append(total)
        return torch.zeros_like(x) if nodes[-1] is None else nodes[-1]
