"""One chosen network: `architecture.json`, and the way from it to a module. Needs torch only to build."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from latency import BlockSpec, Device, Latency, Runtime
from search.files import read_json, to_json
from search.space import Chain, Layer, Widths

if TYPE_CHECKING:
    import torch


class Preprocessing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From an image file to the network's input: RGB, resized bilinearly to `size`, divided by 255, less `mean`, over `std`."""

    size: tuple[int, int]
    """height, width"""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ChosenLayer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer at its chosen width."""

    name: str
    op: Literal["conv"]
    kernel: Literal[3]
    stride: int
    act: Literal["relu"]
    width: int
    """channels that stay"""
    of: int
    """channels of the unpruned layer"""


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network of a space: its layers, what it is fed with, and why it was chosen. Make it with `of`."""

    schema: Literal["architecture/1"] = "architecture/1"
    space: str
    granularity: int
    input_shape: tuple[int, int, int]
    """channels, height, width"""
    classes: int
    layers: tuple[ChosenLayer, ...]
    labels: tuple[str, ...]
    """names of the classes"""
    preprocessing: Preprocessing
    data: str
    """what it was trained on, as `search.data.load` takes it"""
    predicted: Latency
    budget_us: float
    device: Device
    """that `predicted` and the budget are of"""
    runtime: Runtime
    """of that device"""
    table_sha256: str
    """of the latency table that `predicted` is from"""
    method: str
    seed: int
    options: dict[str, str | int | float | bool]
    """every setting of the method"""

    @staticmethod
    def choose(space: Chain, widths: Widths) -> tuple[ChosenLayer, ...]:
        """The layers of a space at these widths."""
        return tuple(
            ChosenLayer(name=layer.name, op=layer.op, kernel=layer.kernel, stride=layer.stride, act=layer.act, width=width, of=layer.width)
            for layer, width in zip(space.layers, widths, strict=True)
        )

    @property
    def widths(self) -> Widths:
        """Channels that stay in each layer."""
        return tuple(layer.width for layer in self.layers)

    @property
    def sha256(self) -> str:
        """Hash of the file that this is written to."""
        return hashlib.sha256(to_json(self)).hexdigest()

    def origin(self) -> Chain:
        """The space that it was chosen from."""
        layers = tuple(
            Layer(name=layer.name, op=layer.op, width=layer.of, kernel=layer.kernel, stride=layer.stride, act=layer.act)
            for layer in self.layers
        )
        return Chain(name=self.space, input_shape=self.input_shape, classes=self.classes, layers=layers, granularity=self.granularity)

    def blocks(self) -> list[BlockSpec]:
        """Blocks of the deployed network, in order."""
        return self.origin().network(self.widths)

    def unpruned(self) -> "torch.nn.Module":
        """The network before pruning, in its training form; `baseline.safetensors` fits."""
        from search.network import build_network

        return build_network(self.origin())

    def build(self) -> "torch.nn.Module":
        """The network in its training form at full width, with a `ChannelMask` in every layer that lost channels.

        `weights.safetensors` fits. Which channels stay is in the weights; without them the first ones do.
        """
        import torch

        from search.network import build_network, keep_channels

        network = build_network(self.origin())
        keep_channels(network, [torch.arange(layer.of) < layer.width for layer in self.layers])
        return network


def load_architecture(path: str | Path) -> Architecture:
    """Read an `architecture.json`.

    Raises:
        SearchError: there is none, or it is damaged.
    """
    return read_json(Path(path), Architecture)
