"""A search space as data: a chain of convolution blocks whose widths are open, and the blocks that its networks are made of."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from latency.block import BlockSpec

Widths = tuple[int, ...]
"""Output channels of every layer, in order: one network of a space."""


class Layer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer whose width is searched."""

    name: str
    """unique in the space; the name of the layer's module"""
    op: Literal["conv"] = "conv"
    """a RepVGG block: it ships as one convolution with bias and activation"""
    width: int
    """largest number of output channels"""
    kernel: Literal[3] = 3
    """side of the deployed kernel"""
    stride: int = 1
    """stride in both directions"""
    act: Literal["relu"] = "relu"
    """activation after the convolution"""


class Space(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All networks of one depth whose layer widths are multiples of `granularity`, with a pooled linear classifier behind them."""

    name: str
    input_shape: tuple[int, int, int]
    """channels, height, width"""
    classes: int
    layers: tuple[Layer, ...]
    granularity: int = 8
    """channels between two widths that a table knows, and that can ship"""

    def width_choices(self, index: int) -> Widths:
        """Widths that layer `index` can ship with, ascending; the full width is always one of them."""
        full = self.layers[index].width
        return (*range(self.granularity, full, self.granularity), full)

    def full_widths(self) -> Widths:
        """Widths of the unpruned network."""
        return tuple(layer.width for layer in self.layers)

    def smallest_widths(self) -> Widths:
        """Widths of the smallest network."""
        return tuple(self.width_choices(index)[0] for index in range(len(self.layers)))

    def size(self) -> int:
        """Number of networks."""
        return math.prod(len(self.width_choices(index)) for index in range(len(self.layers)))

    def network(self, widths: Sequence[int]) -> list[BlockSpec]:
        """Blocks of one network in order: one a layer, then the head."""
        channels, height, width = self.input_shape
        specs = []
        for layer, c_out in zip(self.layers, widths, strict=True):
            attrs = {"act": layer.act, "h": height, "kernel": layer.kernel, "stride": layer.stride, "w": width}
            specs.append(BlockSpec.of(layer.op, attrs=attrs, widths={"c_in": channels, "c_out": c_out}))
            channels, height, width = c_out, -(-height // layer.stride), -(-width // layer.stride)
        specs.append(BlockSpec.of("head", attrs={"h": height, "w": width}, widths={"c_in": channels, "c_out": self.classes}))
        return specs

    def channel_choices(self) -> list[Widths]:
        """What the channel counts along the chain can be: of the input, after each layer, of the output."""
        return [(self.input_shape[0],), *(self.width_choices(index) for index in range(len(self.layers))), (self.classes,)]

    def blocks(self) -> list[BlockSpec]:
        """Every distinct block that any network of the space contains: each layer at each pair of its input and output widths."""
        choices = self.channel_choices()
        specs = [
            site.with_widths(c_in=c_in, c_out=c_out)
            for site, inputs, outputs in zip(self.network(self.full_widths()), choices, choices[1:], strict=False)
            for c_in, c_out in itertools.product(inputs, outputs)
        ]
        return list(dict.fromkeys(specs))

    def macs(self, widths: Sequence[int] | None = None, *, deployed: bool = True) -> int:
        """Multiply-accumulates of one inference: convolutions and the linear layer.

        Args:
            widths: the network; the unpruned one by default.
            deployed: count the one convolution that each block ships as; otherwise the 3x3 and the 1x1 branch of its training form.
        """
        specs = self.network(widths or self.full_widths())
        return sum(macs_per_pair(spec, deployed=deployed) * spec.width("c_in") * spec.width("c_out") for spec in specs)

    def parameters(self, widths: Sequence[int] | None = None, *, deployed: bool = True) -> int:
        """Weights and biases, and in the training form the scale and shift of norms.

        Args:
            widths: the network; the unpruned one by default.
            deployed: count the one convolution that each block ships as; otherwise the branches of its training form.
        """
        total = 0
        for spec in self.network(widths or self.full_widths()):
            c_in, c_out = spec.width("c_in"), spec.width("c_out")
            branches = 3 if c_in == c_out and spec.attr("stride") == 1 else 2  # each ends in a norm
            vectors = 1 if deployed or spec.op == "head" else 2 * branches
            total += (_taps(spec, deployed=deployed) * c_in + vectors) * c_out
        return total


def macs_per_pair(spec: BlockSpec, *, deployed: bool = True) -> int:
    """Multiply-accumulates of a block for each pair of an input and an output channel."""
    stride = int(spec.attr("stride")) if spec.op == "conv" else 1
    pixels = -(-int(spec.attr("h")) // stride) * -(-int(spec.attr("w")) // stride) if spec.op == "conv" else 1
    return _taps(spec, deployed=deployed) * pixels


def _taps(spec: BlockSpec, *, deployed: bool) -> int:
    if spec.op == "head":
        return 1
    return int(spec.attr("kernel")) ** 2 + (0 if deployed else 1)
