"""Spaces of layers that each choose a block, such as PRUNET's."""

import math
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import msgspec

from latency.block import BlockSpec
from search import ops
from search.errors import SearchError
from search.ops import ModelSize
from search.space import Choice, Space
from search.spaces.prunable import AffineWidth, Site, Widths

if TYPE_CHECKING:
    from torch import nn

SKIP = "skip"
"""The option that skips a layer."""


@dataclass(frozen=True, kw_only=True)
class MultiBlock:
    """One kind of block at all its hidden widths: a multi-block of PRUNET, Section 4.1.1."""

    name: str
    """unique in its layer, such as `irb_k5_se`"""
    spec: BlockSpec
    """the block at its largest hidden width"""
    hidden: Widths = ()
    """hidden widths, ascending; empty if the hidden width is not open"""

    def blocks(self) -> list[BlockSpec]:
        """Return the block at each hidden width, ascending."""
        return [self.spec.with_widths(hidden=hidden) for hidden in self.hidden] or [self.spec]

    @property
    def site(self) -> Site:
        """A site whose hidden width, if open, is the width of its only group, 0."""
        widths = self.spec.widths
        return Site(
            spec=self.spec,
            spans=tuple(
                AffineWidth(terms=((0, 1),)) if self.hidden and name == "hidden" else AffineWidth(fixed=width)
                for name, width in widths
            ),
        )


@dataclass(frozen=True, kw_only=True)
class StochasticLayer:
    """A layer that chooses one of several blocks, all of the same input and output shapes."""

    name: str
    """unique in the space"""
    options: tuple[MultiBlock, ...]
    """kinds of block, from the smallest to the largest"""
    skippable: bool = False
    """whether a network may skip the layer, which requires equal input and output shapes"""

    @property
    def open(self) -> bool:
        """Whether there is more than one option, including skipping."""
        return len(self.options) + self.skippable > 1

    def blocks(self) -> list[BlockSpec]:
        """Return every block that can be chosen."""
        return [block for option in self.options for block in option.blocks()]


@final
@dataclass(frozen=True, kw_only=True)
class Layered(Space):
    """Networks with one independently chosen block per layer; some layers can be skipped (PRUNET, Section 3.1).

    A `Choice` has an option for each layer with several options, and a width for each chosen block of open hidden
    width, both by layer name.
    """

    layers: tuple[StochasticLayer, ...]

    def size(self) -> int:
        """Number of networks; skipping a layer counts as one more choice."""
        return math.prod(len(layer.blocks()) + layer.skippable for layer in self.layers)

    def blocks(self) -> list[BlockSpec]:
        """The distinct blocks of all layers."""
        return list(dict.fromkeys(block for layer in self.layers for block in layer.blocks()))

    def largest(self) -> Choice:
        """The last option of each layer at its largest hidden width, without skips."""
        return self._choice([(layer.options[-1], layer.options[-1].hidden[-1:]) for layer in self.layers])

    def smallest(self) -> Choice:
        """The first option of each layer at its smallest hidden width; skippable layers are skipped."""
        return self._choice(
            [(None if layer.skippable else layer.options[0], layer.options[0].hidden[:1]) for layer in self.layers]
        )

    def random(self, draw: random.Random) -> Choice:
        """Draw the kind of each layer's block uniformly, including skipping, and then its hidden width uniformly.

        If all blocks were equally likely, a layer with hundreds of widths would hardly ever be skipped, and all
        networks would have the same depth.
        """
        drawn: list[tuple[MultiBlock | None, Widths]] = []
        for layer in self.layers:
            option = draw.choice([*layer.options, None] if layer.skippable else layer.options)
            hidden = draw.choice(option.hidden or (0,)) if option else 0
            drawn.append((option, (hidden,) if hidden else ()))
        return self._choice(drawn)

    def _choice(self, each: list[tuple[MultiBlock | None, Widths]]) -> Choice:
        """Return the choice of the given option of each layer, None to skip it, at its hidden width, if open."""
        layers = list(zip(self.layers, each, strict=True))
        return Choice(
            options={layer.name: option.name if option else SKIP for layer, (option, _) in layers if layer.open},
            widths={layer.name: hidden[0] for layer, (option, hidden) in layers if option and hidden},
        )

    def chosen(self, choice: Choice | None = None) -> dict[str, BlockSpec]:
        """Return the block of each layer that is not skipped, by layer name, in order.

        Args:
            choice: the network; the largest by default.

        Raises:
            SearchError: the choice is not of this space.
        """
        choice = self.largest() if choice is None else choice
        blocks: dict[str, BlockSpec] = {}
        for layer in self.layers:
            option = self._option(layer, choice)
            if option is None:
                continue
            hidden = choice.widths.get(layer.name)
            if option.hidden and hidden not in option.hidden:
                allowed = _listed(option.hidden)
                raise SearchError(
                    f"{self.name}: the hidden width of {layer.name}, {option.name}, is one of {allowed}, found {hidden}"
                )
            blocks[layer.name] = option.spec.with_widths(hidden=hidden) if option.hidden and hidden else option.spec
        open_widths = {layer.name for layer in self.layers if (option := self._option(layer, choice)) and option.hidden}
        open_options = {layer.name for layer in self.layers if layer.open}
        if unknown := sorted(
            (choice.options.keys() - open_options) | (choice.widths.keys() - open_widths) | choice.depths.keys()
        ):
            raise SearchError(f"{self.name} has nothing to choose at {', '.join(unknown)}: take it out of the choice")
        return blocks

    def _option(self, layer: StochasticLayer, choice: Choice) -> MultiBlock | None:
        options: dict[str, MultiBlock | None] = {option.name: option for option in layer.options}
        if layer.skippable:
            options[SKIP] = None
        name = choice.options.get(layer.name) if layer.open else layer.options[0].name
        if name not in options:
            raise SearchError(f"{self.name}: layer {layer.name} has the options {', '.join(options)}, found {name}")
        return options[name]

    @property
    def granularity(self) -> int:
        """Channels between two hidden widths."""
        hidden = [option.hidden for layer in self.layers for option in layer.options if len(option.hidden) > 1]
        return min((widths[1] - widths[0] for widths in hidden), default=1)

    def axes(self, site: Site) -> tuple[Widths, ...]:
        """Return the choices of each width of a `MultiBlock.site`, ascending."""
        option = next(option for layer in self.layers for option in layer.options if option.spec == site.spec)
        return tuple(option.hidden if span.terms else (span.fixed,) for span in site.spans)

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """The blocks that are not skipped."""
        return list(self.chosen(choice).values())

    def module(self, choice: Choice | None = None) -> "nn.Sequential":
        """The blocks that are not skipped, named by layer, with one norm per convolution."""
        from torch import nn

        from search.blocks import trained

        return nn.Sequential(OrderedDict((name, trained(spec)) for name, spec in self.chosen(choice).items()))

    def deployed(self, choice: Choice | None = None) -> "nn.Sequential":
        """The deployed blocks that are not skipped."""
        from search.blocks import serial

        return serial(self.network(choice))

    def record(self) -> dict[str, Any]:
        """The fields of the space, with blocks as their keys."""
        layers = [
            {
                "name": layer.name,
                "skippable": layer.skippable,
                "options": [
                    {"name": option.name, "spec": option.spec.key, "hidden": option.hidden} for option in layer.options
                ],
            }
            for layer in self.layers
        ]
        facts = {
            "kind": "layered",
            "name": self.name,
            "input_shape": self.input_shape,
            "classes": self.classes,
            "layers": layers,
        }
        return msgspec.json.decode(msgspec.json.encode(facts))

    def counts(self, spec: BlockSpec, *, deployed: bool) -> ModelSize:
        """Size of one block; the training form has one norm per convolution."""
        return ops.counts(spec, deployed=deployed)


def _listed(widths: Widths) -> str:
    return ", ".join(map(str, widths)) if len(widths) < 5 else f"{widths[0]}, {widths[1]}, ... {widths[-1]}"
