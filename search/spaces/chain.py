"""Chains of RepVGG blocks with open widths."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import msgspec
from msgspec import Meta, Struct

from latency.block import BlockSpec
from latency.values import Width
from search import ops
from search.ops import ModelSize
from search.space import Choice
from search.spaces.prunable import AffineWidth, Prunable, Site

if TYPE_CHECKING:
    from torch import nn


class Layer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer of a chain, whose width is searched."""

    name: str
    """unique in the space; the name of the layer's module"""
    op: Literal["conv"] = "conv"
    """a RepVGG block: it ships as one convolution with bias and activation"""
    width: Width
    """largest number of output channels"""
    kernel: Literal[3] = 3
    """side of the deployed kernel"""
    stride: Annotated[int, Meta(ge=1, le=64)] = 1
    """stride in both directions"""
    act: Literal["relu"] = "relu"
    """activation after the convolution"""


@final
@dataclass(frozen=True, kw_only=True)
class Chain(Prunable):
    """RepVGG networks of one depth, with layer widths that are multiples of `granularity`.

    They end in a pooled linear classifier.
    """

    layers: tuple[Layer, ...]

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Name and full width of each layer."""
        return tuple((layer.name, layer.width) for layer in self.layers)

    def sites(self) -> list[Site]:
        """One site per layer, then the head."""
        sites, shape, before = list[Site](), self.input_shape, AffineWidth(fixed=self.input_shape[0])
        for index, layer in enumerate(self.layers):
            spec, after = (
                ops.conv(shape, layer.width, kernel=layer.kernel, stride=layer.stride, act=layer.act),
                AffineWidth(terms=((index, 1),)),
            )
            sites.append(Site(spec=spec, spans=(before, after)))
            shape, before = ops.output_shape(spec), after
        return [*sites, Site(spec=ops.head(shape, self.classes), spans=(before, AffineWidth(fixed=self.classes)))]

    def record(self) -> dict[str, Any]:
        """The fields of the space."""
        return {"kind": "chain", **msgspec.json.decode(msgspec.json.encode(self))}

    def unpruned(self) -> "nn.Sequential":
        """One RepVGG block per layer, then the head."""
        from torch import nn

        from reparam import RepVGGBlock
        from search.blocks import pooled_linear

        modules: OrderedDict[str, nn.Module] = OrderedDict()
        channels = self.input_shape[0]
        for layer in self.layers:
            modules[layer.name] = RepVGGBlock(channels, layer.width, stride=layer.stride)
            channels = layer.width
        modules["head"] = pooled_linear(channels, self.classes)
        return nn.Sequential(modules)

    def deployed(self, choice: Choice | None = None) -> "nn.Sequential":
        """One convolution per layer, then the head."""
        from search.blocks import serial

        return serial(self.network(choice))

    def counts(self, spec: BlockSpec, *, deployed: bool) -> ModelSize:
        """Size of one block; the training form includes the 1x1 branch and, if shapes allow, the identity branch."""
        return ops.counts(spec) if deployed else ops.repvgg_counts(spec)
