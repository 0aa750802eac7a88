"""One chosen network: `architecture.json`, and the way from it to a module. Needs torch only to build."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from latency import BlockSpec, Device, Latency, Runtime
from latency.values import OptionalSha256, Pixels, SampleUs, Seed, Sha256, Width
from search import spaces
from search.files import read_json, to_json
from search.space import Choice, Space

if TYPE_CHECKING:
    import torch


# architecture/4: `also`, further devices.
# architecture/3: preprocessing and labels are of image classification alone.
# architecture/2: a choice of any space, with the space's record; `blocks` are those that ship, by their keys; `origin`
# of a prediction. architecture/1: the layers of a chain, or the groups of a space of widths, each with its channels;
# the space by its name.
SCHEMA = "architecture/4"

MAX_WEIGHTS = 2**32
"""Most weights of a network that is built: 16 GiB."""

MAX_ELEMENTS = 2**30
"""Most numbers of one input: 4 GiB."""

Level = Annotated[float, Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, Meta(gt=0, le=1e6)]


class Preprocessing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From an image file to the network's input.

    RGB, resized bilinearly to `size`, divided by 255, less `mean`, over `std`.
    """

    size: tuple[Pixels, Pixels]
    """height, width"""
    mean: tuple[Level, Level, Level]
    std: tuple[Spread, Spread, Spread]


class OtherDevice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further device whose budget a search had to meet, and what the network takes there."""

    device: Device
    runtime: Runtime
    table_sha256: Sha256
    """of its latency table"""
    budget_us: SampleUs
    predicted: Latency
    """by that table"""
    largest: Latency
    """the same for the largest network of the space"""

    @property
    def name(self) -> str:
        """As people read it."""
        threads = (
            f", {self.device.threads} {'thread' if self.device.threads == 1 else 'threads'}"
            if self.device.kind == "cpu"
            else ""
        )
        return f"{self.device.name}{threads}, with {self.runtime.name} {self.runtime.version}"


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network of a space: which, what it is fed with, and why it was chosen."""

    schema: Literal["architecture/4"] = SCHEMA
    space: dict[str, Any]
    """record of the space that it was chosen from, as of `Space.record`"""
    choice: Choice
    """the network"""
    blocks: tuple[str, ...]
    """keys of the blocks that ship, in the order in which they run; none where the space's record does not list its
    layers"""
    labels: tuple[str, ...]
    """names of the classes; none of a network that does not classify"""
    preprocessing: Preprocessing | None
    """None where an input is not made of an image file"""
    data: str
    """what it was trained on: data that `search.data.load` takes, or a task of one's own, FILE.py:FUNCTION"""
    predicted: Latency | None
    """None where no table was given, as are the next three"""
    budget_us: SampleUs | None
    device: Device | None
    """that `predicted` and the budget are of"""
    runtime: Runtime | None
    """of that device"""
    table_sha256: OptionalSha256
    """of the latency table that `predicted` is from; "" where none was given"""
    batch: Width = 1
    """images an inference, of that table and of those of further devices"""
    also: tuple[OtherDevice, ...] = ()
    """further devices"""
    method: str
    seed: Seed
    options: dict[str, str | int | float | bool]
    """every setting of the method"""

    def __post_init__(self) -> None:
        space = self.origin()
        if self.labels and len(self.labels) != space.classes:
            raise ValueError(f"it has {space.classes} classes, and {len(self.labels)} labels")
        if (elements := math.prod(space.input_shape)) > MAX_ELEMENTS:
            raise ValueError(f"an input has {elements:,} numbers, and at most {MAX_ELEMENTS:,} are built")
        if not self.blocks:
            return
        try:
            blocks, weights = keys(space, self.choice), space.parameters()
        except (ArithmeticError, AssertionError, LookupError) as error:
            raise ValueError(f"a block of its space is not one: {error!r}") from error
        if self.blocks != blocks:
            raise ValueError("its blocks are not those of its choice")
        if weights > MAX_WEIGHTS:
            raise ValueError(f"its space has up to {weights:,} weights, and at most {MAX_WEIGHTS:,} are built")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.origin().input_shape

    @property
    def name(self) -> str:
        """Of the space."""
        return str(self.space["name"])

    @property
    def sha256(self) -> str:
        """Hash of the file that this is written to."""
        return hashlib.sha256(to_json(self)).hexdigest()

    def origin(self, module: "torch.nn.Module | None" = None) -> Space:
        """The space that it was chosen from.

        Args:
            module: the network before pruning, where it is of the user's own; without it all works but what needs the
                module.
        """
        return spaces.from_record(self.space, make=None if module is None else lambda: module)

    def network(self) -> list[BlockSpec]:
        """Blocks of the deployed network, in order.

        Raises:
            SearchError: the file does not list them.
        """
        return self.origin().network(self.choice)

    def unpruned(self) -> "torch.nn.Module":
        """The network before pruning, in its training form; `baseline.safetensors` fits.

        Raises:
            SearchError: it is a module of the user's own, which no file holds.
        """
        return self.origin().module()

    def build(self, module: "torch.nn.Module | None" = None) -> "torch.nn.Module":
        """The network in its training form; `weights.safetensors` fits.

        Of a space of widths it is at full width, with a `ChannelMask` behind every group that lost channels. Which
        channels stay is in the weights; without them the first ones do.

        Args:
            module: the network before pruning, where it is of the user's own.

        Raises:
            SearchError: that is missing, or has other groups.
        """
        return self.origin(module).module(self.choice)


def keys(space: Space, choice: Choice) -> tuple[str, ...]:
    """Keys of the blocks of a network."""
    return tuple(block.key for block in space.network(choice))


class _Layer1(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer of a chain, or a group of channels of any network, in architecture/1."""

    name: str
    op: Literal["conv", "group"]
    kernel: Literal[3] | None
    stride: int | None
    act: Literal["relu"] | None
    width: int
    of: int


def architecture_from_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of architecture/2 from those of architecture/1.

    A space of the widths of a named network is made again, which needs torch. One of a module of the user's own comes
    without its layers: /1 did not list them.

    Raises:
        SearchError: the layers are not those of the space.
    """
    layers = msgspec.convert(fields["layers"], tuple[_Layer1, ...])
    kept = {
        name: value
        for name, value in fields.items()
        if name not in ("granularity", "input_shape", "classes", "layers", "space")
    }
    facts = {name: fields[name] for name in ("granularity", "input_shape", "classes")} | {"name": fields["space"]}
    members = [[layer.name, layer.of] for layer in layers]
    if any(layer.op == "group" for layer in layers):
        record = {"kind": "traced", **facts, "points": 6, "members": members, "places": []}
        if spaces.is_named_widths(fields["space"]):
            record = spaces.get(
                fields["space"], classes=fields["classes"], resolution=fields["input_shape"][1]
            ).record()
            if record["members"] != members:
                raise ValueError(f"its layers are not those of the space {fields['space']}")
    else:
        convs = [
            {"name": a.name, "op": a.op, "width": a.of, "kernel": a.kernel, "stride": a.stride, "act": a.act}
            for a in layers
        ]
        record = {"kind": "chain", **facts, "layers": convs}
    choice = Choice(widths={layer.name: layer.width for layer in layers})
    blocks = () if record.get("places") == [] else keys(spaces.from_record(record), choice)
    return {
        **kept,
        "schema": "architecture/2",
        "space": record,
        "choice": msgspec.to_builtins(choice),
        "blocks": blocks,
    }


def architecture_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """architecture/2 -> architecture/3: all were classifiers, whose fields are the same."""
    return {**fields, "schema": "architecture/3"}


def architecture_from_3(fields: Mapping[str, Any]) -> dict[str, Any]:
    """architecture/3 -> architecture/4: there was one device."""
    return {**fields, "schema": SCHEMA}


def load_architecture(path: str | Path) -> Architecture:
    """Read an `architecture.json` of any version.

    Raises:
        SearchError: there is none, or it is damaged.
    """
    upgrades = {
        "architecture/1": architecture_from_1,
        "architecture/2": architecture_from_2,
        "architecture/3": architecture_from_3,
    }
    return read_json(Path(path), Architecture, upgrades)
