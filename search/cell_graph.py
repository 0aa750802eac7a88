"""Nodes, edges and operations of a cell of NAS-Bench-201, and which of its nodes are equal."""

from collections.abc import Mapping

NODES = 4
EDGES = tuple((source, target) for target in range(1, NODES) for source in range(target))
"""Source and target node of each edge, in the order of the benchmark's architecture strings."""
NONE, SKIP, CONV1, CONV3, POOL = OPTIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""Options of an edge, by the benchmark's names: nothing, identity, activation and convolution, or average pooling."""
SUM = "add"
"""The sum of two feature maps."""

Value = tuple[int, int]
"""Value of a node: a node, this or an earlier one, and the number of times that it is pooled."""


def values_of(used: Mapping[tuple[int, int], str]) -> list[Value]:
    """Return the value of each node of a cell; nodes that are equal for any weights share one value.

    Args:
        used: operation of each used edge, in order.
    """
    values: list[Value] = [(0, 0)]
    for node in range(1, NODES):
        match [(source, option) for (source, target), option in used.items() if target == node]:
            case [(source, option)] if option in (SKIP, POOL):
                origin, pools = values[source]
                values.append((origin, pools + (option == POOL)))
            case _:
                values.append((node, 0))
    return values
