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
from search.ops import Counts
from search.space import Choice, Space
from search.spaces.prunable import Site, Span, Widths

if TYPE_CHECKING:
    from torch import nn

SKIP = "skip"
"""The option of a layer that a network does without."""


@dataclass(frozen=True, kw_only=True)
class MultiBlock:
    """One kind of block at every hidden width that it can have: a multi-block of PRUNET, Section 4.1.1."""

    name: str
    """unique in its layer, such as `irb_k5_se`"""
    spec: BlockSpec
    """at its largest hidden width"""
    hidden: Widths = ()
    """hidden widths, ascending; none where nothing is open"""

    def blocks(self) -> list[BlockSpec]:
        """The block at each hidden width, ascending."""
        return [self.spec.with_widths(hidden=hidden) for hidden in self.hidden] or [self.spec]

    @property
    def site(self) -> Site:
        """Where it runs: its hidden width is that of group 0, of a single one."""
        widths = self.spec.widths
        return Site(
            spec=self.spec,
            spans=tuple(Span(terms=((0, 1),)) if self.hidden and name == "hidden" else Span(fixed=width) for name, width in widths),
        )


@dataclass(frozen=True, kw_only=True)
class StochasticLayer:
    """A layer of which one block is chosen; all have the same input and output shape."""

    name: str
    """unique in the space"""
    options: tuple[MultiBlock, ...]
    """from the smallest kind of block to the largest"""
    skippable: bool = False
    """whether a network may do without the layer; its input and output shape are then equal"""

    @property
    def open(self) -> bool:
        """Whether there is more than one option, skipping being one."""
        return len(self.options) + self.skippable > 1

    def blocks(self) -> list[BlockSpec]:
        """Every block that can be chosen."""
        return [block for option in self.options for block in option.blocks()]


@final
@dataclass(frozen=True, kw_only=True)
class Layered(Space):
    """Networks with one block a layer, each chosen for itself; some layers can be skipped (PRUNET, Section 3.1).

    A `Choice` has an option for each layer that has several, and a width for each chosen block whose hidden width is open, both by the name
    of the layer.
    """

    layers: tuple[StochasticLayer, ...]

    def size(self) -> int:
        """Number of networks: skipping a layer counts as one more choice."""
        return math.prod(len(layer.blocks()) + layer.skippable for layer in self.layers)

    def blocks(self) -> list[BlockSpec]:
        """Every choice of every layer, once."""
        return list(dict.fromkeys(block for layer in self.layers for block in layer.blocks()))

    def largest(self) -> Choice:
        """The last option of each layer at its largest hidden width, nothing skipped."""
        return self._choice([(layer.options[-1], layer.options[-1].hidden[-1:]) for layer in self.layers])

    def smallest(self) -> Choice:
        """The first option of each layer at its smallest hidden width; what can be skipped is."""
        return self._choice([(None if layer.skippable else layer.options[0], layer.options[0].hidden[:1]) for layer in self.layers])

    def random(self, draw: random.Random) -> Choice:
        """In each layer the kinds of block are equally likely, skipping being one, then the hidden widths of the kind.

        Were all blocks equally likely, a layer with hundreds of widths would hardly ever be skipped, and all networks were equally deep.
        """
        drawn: list[tuple[MultiBlock | None, Widths]] = []
        for layer in self.layers:
            option = draw.choice([*layer.options, None] if layer.skippable else layer.options)
            hidden = draw.choice(option.hidden or (0,)) if option else 0
            drawn.append((option, (hidden,) if hidden else ()))
        return self._choice(drawn)

    def _choice(self, each: list[tuple[MultiBlock | None, Widths]]) -> Choice:
        """Of each layer its option, None to skip it, and the option's hidden width, if it has one."""
        layers = list(zip(self.layers, each, strict=True))
        return Choice(
            options={layer.name: option.name if option else SKIP for layer, (option, _) in layers if layer.open},
            widths={layer.name: hidden[0] for layer, (option, hidden) in layers if option and hidden},
        )

    def chosen(self, choice: Choice | None = None) -> dict[str, BlockSpec]:
        """Block of each layer that is not skipped, by the name of the layer, in order.

        Args:
            choice: which network; the largest by default.

        Raises:
            SearchError: the choice is not of this space.
        """
        choice = self.largest() if choice is None else choice
        found: dict[str, BlockSpec] = {}
        for layer in self.layers:
            option = self._option(layer, choice)
            if option is None:
                continue
            hidden = choice.widths.get(layer.name)
            if option.hidden and hidden not in option.hidden:
                allowed = _listed(option.hidden)
                raise SearchError(f"{self.name}: the hidden width of {layer.name}, {option.name}, is one of {allowed}, found {hidden}")
            found[layer.name] = option.spec.with_widths(hidden=hidden) if option.hidden and hidden else option.spec
        open_widths = {layer.name for layer in self.layers if (option := self._option(layer, choice)) and option.hidden}
        open_options = {layer.name for layer in self.layers if layer.open}
        if unknown := sorted((choice.options.keys() - open_options) | (choice.widths.keys() - open_widths) | choice.depths.keys()):
            raise SearchError(f"{self.name} has nothing to choose at {', '.join(unknown)}: take it out of the choice")
        return found

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
        """What each width of a `MultiBlock.site` can be, ascending."""
        option = next(option for layer in self.layers for option in layer.options if option.spec == site.spec)
        return tuple(option.hidden if span.terms else (span.fixed,) for span in site.spans)

    def network(self, choice: Choice | None = None) -> list[BlockSpec]:
        """The blocks that are not skipped."""
        return list(self.chosen(choice).values())

    def module(self, choice: Choice | None = None) -> "nn.Sequential":
        """The blocks that are not skipped, one norm a convolution, by the names of their layers."""
        from torch import nn

        from search.blocks import trained

        return nn.Sequential(OrderedDict((name, trained(spec)) for name, spec in self.chosen(choice).items()))

    def deployed(self, choice: Choice | None = None) -> "nn.Sequential":
        """The blocks that are not skipped."""
        from search.blocks import serial

        return serial(self.network(choice))

    def record(self) -> dict[str, Any]:
        """Its fields, blocks by their keys."""
        layers = [
            {
                "name": layer.name,
                "skippable": layer.skippable,
                "options": [{"name": option.name, "spec": option.spec.key, "hidden": option.hidden} for option in layer.options],
            }
            for layer in self.layers
        ]
        facts = {"kind": "layered", "name": self.name, "input_shape": self.input_shape, "classes": self.classes, "layers": layers}
        return msgspec.json.decode(msgspec.json.encode(facts))

    def counts(self, spec: BlockSpec, *, deployed: bool) -> Counts:
        """Size of one block; trained with one norm a convolution."""
        return ops.counts(spec, deployed=deployed)


def _listed(widths: Widths) -> str:
    return ", ".join(map(str, widths)) if len(widths) < 5 else f"{widths[0]}, {widths[1]}, ... {widths[-1]}"
