"""One chosen network: `architecture.json`, and the way from it to a module. Needs torch only to build."""

import hashlib
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from latency import BlockSpec, Device, Latency, Runtime
from latency.values import OptionalSha256, Pixels, SampleUs, Seed, Width
from search.errors import SearchError
from search.files import read_json, to_json
from search.spaces import Chain, Layer, Prunable, Widths

if TYPE_CHECKING:
    import torch


MAX_WEIGHTS = 2**32
"""Most weights of a network that is built: 16 GiB."""

MAX_ELEMENTS = 2**30
"""Most numbers of one input: 4 GiB."""

Level = Annotated[float, Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, Meta(gt=0, le=1e6)]


class Preprocessing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From an image file to the network's input: RGB, resized bilinearly to `size`, divided by 255, less `mean`, over `std`."""

    size: tuple[Pixels, Pixels]
    """height, width"""
    mean: tuple[Level, Level, Level]
    std: tuple[Spread, Spread, Spread]


class ChosenLayer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer at its chosen width."""

    name: str
    """of the layer, or of the group of channels"""
    op: Literal["conv", "group"]
    """a layer of a chain, or a group of channels of any network; the latter has no kernel, stride and activation of its own"""
    kernel: Literal[3] | None
    stride: Annotated[int, Meta(ge=1, le=64)] | None
    act: Literal["relu"] | None
    width: Width
    """channels that stay"""
    of: Width
    """channels of the unpruned layer"""

    def __post_init__(self) -> None:
        if self.width > self.of:
            raise ValueError(f"layer {self.name!r} keeps {self.width} channels, and has {self.of}")


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network of a space: its layers, what it is fed with, and why it was chosen. Make it with `of`."""

    schema: Literal["architecture/1"] = "architecture/1"
    space: str
    granularity: Width
    input_shape: tuple[Width, Pixels, Pixels]
    """channels, height, width"""
    classes: Width
    layers: tuple[ChosenLayer, ...]
    labels: tuple[str, ...]
    """names of the classes"""
    preprocessing: Preprocessing
    data: str
    """what it was trained on, as `search.data.load` takes it"""
    predicted: Latency | None
    """None where no table was given, as are the next three"""
    budget_us: SampleUs | None
    device: Device | None
    """that `predicted` and the budget are of"""
    runtime: Runtime | None
    """of that device"""
    table_sha256: OptionalSha256
    """of the latency table that `predicted` is from; "" where none was given"""
    method: str
    seed: Seed
    options: dict[str, str | int | float | bool]
    """every setting of the method"""

    def __post_init__(self) -> None:
        if not self.layers or len({layer.name for layer in self.layers}) < len(self.layers):
            raise ValueError("it has no layers, or two of one name")
        if len(self.labels) != self.classes:
            raise ValueError(f"it has {self.classes} classes, and {len(self.labels)} labels")
        if (elements := math.prod(self.input_shape)) > MAX_ELEMENTS:
            raise ValueError(f"an input has {elements:,} numbers, and at most {MAX_ELEMENTS:,} are built")
        widths = [self.input_shape[0], *(layer.of for layer in self.layers if layer.op == "conv"), self.classes]
        if (weights := sum(9 * c_in * c_out for c_in, c_out in itertools.pairwise(widths))) > MAX_WEIGHTS:
            raise ValueError(f"its layers have up to {weights:,} weights, and at most {MAX_WEIGHTS:,} are built")

    @staticmethod
    def choose(space: Prunable, widths: Widths) -> tuple[ChosenLayer, ...]:
        """The layers of a chain, or the groups of another space, at these widths."""
        if isinstance(space, Chain):
            return tuple(
                ChosenLayer(
                    name=layer.name, op=layer.op, kernel=layer.kernel, stride=layer.stride, act=layer.act, width=width, of=layer.width
                )
                for layer, width in zip(space.layers, widths, strict=True)
            )
        return tuple(
            ChosenLayer(name=name, op="group", kernel=None, stride=None, act=None, width=width, of=full)
            for (name, full), width in zip(space.groups, widths, strict=True)
        )

    @property
    def widths(self) -> Widths:
        """Channels that stay in each layer."""
        return tuple(layer.width for layer in self.layers)

    @property
    def sha256(self) -> str:
        """Hash of the file that this is written to."""
        return hashlib.sha256(to_json(self)).hexdigest()

    def origin(self) -> Prunable:
        """The space that it was chosen from.

        Raises:
            SearchError: that was made of a module of the user's own, which no file holds.
        """
        if any(layer.op == "group" for layer in self.layers):
            from search import spaces

            known = self.space.endswith(spaces.WIDTHS) and self.space.removesuffix(spaces.WIDTHS) in spaces.names()
            found = spaces.get(self.space, classes=self.classes, resolution=self.input_shape[1]) if known else None
            if not isinstance(found, Prunable):
                raise SearchError(f"architecture {self.space!r} is of a module of your own: give it, as in architecture.build(module)")
            if found.groups != tuple((layer.name, layer.of) for layer in self.layers):
                raise SearchError(f"the architecture's layers are not those of the space {self.space}: run `lathe search` again")
            return found
        layers = tuple(
            Layer(name=layer.name, op="conv", width=layer.of, kernel=3, stride=layer.stride or 1, act="relu") for layer in self.layers
        )
        return Chain(name=self.space, input_shape=self.input_shape, classes=self.classes, layers=layers, granularity=self.granularity)

    def blocks(self) -> list[BlockSpec]:
        """Blocks of the deployed network, in order."""
        origin = self.origin()
        return origin.network(origin.choice(self.widths))

    def unpruned(self) -> "torch.nn.Module":
        """The network before pruning, in its training form; `baseline.safetensors` fits."""
        return self.origin().module()

    def build(self, module: "torch.nn.Module | None" = None) -> "torch.nn.Module":
        """The network in its training form at full width, with a `ChannelMask` behind every group that lost channels.

        `weights.safetensors` fits. Which channels stay is in the weights; without them the first ones do.

        Args:
            module: the network before pruning, where it is of the user's own.

        Raises:
            SearchError: that is missing, or has other groups.
        """
        from search import masks

        widths = {layer.name: (layer.width, layer.of) for layer in self.layers}
        return masks.narrowed(module or self.unpruned(), self.input_shape, widths)


def load_architecture(path: str | Path) -> Architecture:
    """Read an `architecture.json`.

    Raises:
        SearchError: there is none, or it is damaged.
    """
    return read_json(Path(path), Architecture)
