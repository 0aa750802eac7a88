"""One chosen network: `architecture.json`, and the module built from it. Needs torch only to build."""

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


# architecture/4: adds `also`, further devices.
# architecture/3: preprocessing and labels are present only for image classification.
# architecture/2: a choice from any space, with the space's record; keys of the blocks that ship; `origin` of a
# prediction. architecture/1: the layers of a chain, or the groups of a space of widths, with their channels; the name
# of the space.
SCHEMA = "architecture/4"

MAX_WEIGHTS = 2**32
"""Maximum number of weights of a network that is built: 16 GiB."""

MAX_ELEMENTS = 2**30
"""Maximum number of elements of one input: 4 GiB."""

Level = Annotated[float, Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, Meta(gt=0, le=1e6)]


class Preprocessing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image file becomes the network's input.

    RGB is resized bilinearly to `size`, divided by 255, reduced by `mean` and divided by `std`.
    """

    size: tuple[Pixels, Pixels]
    """height, width"""
    mean: tuple[Level, Level, Level]
    std: tuple[Spread, Spread, Spread]


class OtherDevice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further device whose budget the search had to meet, with the network's latency there."""

    device: Device
    runtime: Runtime
    table_sha256: Sha256
    """hash of its latency table"""
    budget_us: SampleUs
    predicted: Latency
    """predicted latency of the network"""
    largest: Latency
    """predicted latency of the largest network of the space"""

    @property
    def name(self) -> str:
        """The device, its threads and its runtime, for display."""
        threads = (
            f", {self.device.threads} {'thread' if self.device.threads == 1 else 'threads'}"
            if self.device.kind == "cpu"
            else ""
        )
        return f"{self.device.name}{threads}, with {self.runtime.name} {self.runtime.version}"


class Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network of a space, its input, and how it was chosen."""

    schema: Literal["architecture/4"] = SCHEMA
    space: dict[str, Any]
    """result of `Space.record` of the space that it was chosen from"""
    choice: Choice
    """the network"""
    blocks: tuple[str, ...]
    """keys of the blocks that ship, in execution order; empty if the space's record does not list its layers"""
    labels: tuple[str, ...]
    """names of the classes; empty if the network is not a classifier"""
    preprocessing: Preprocessing | None
    """None if inputs are not image files"""
    data: str
    """name of the training data, as for `search.data.load`, or a user-defined task, FILE.py:FUNCTION"""
    predicted: Latency | None
    """None without a table, like the next three"""
    budget_us: SampleUs | None
    device: Device | None
    """device of `predicted` and of the budget"""
    runtime: Runtime | None
    """runtime on that device"""
    table_sha256: OptionalSha256
    """hash of the latency table behind `predicted`; "" without a table"""
    batch: Width = 1
    """images per inference in all tables"""
    also: tuple[OtherDevice, ...] = ()
    """further devices"""
    method: str
    seed: Seed
    options: dict[str, str | int | float | bool]
    """every setting of the method"""

    def __post_init__(self) -> None:
        space = self.origin()
        if self.labels and len(self.labels) != space.classes:
            raise ValueError(f"it has {space.classes} classes but {len(self.labels)} labels")
        if (elements := math.prod(space.input_shape)) > MAX_ELEMENTS:
            raise ValueError(f"an input has {elements:,} elements, at most {MAX_ELEMENTS:,} are supported")
        if not self.blocks:
            return
        try:
            blocks, weights = keys(space, self.choice), space.parameters()
        except (ArithmeticError, AssertionError, LookupError) as error:
            raise ValueError(f"a block of its space is invalid: {error!r}") from error
        if self.blocks != blocks:
            raise ValueError("its blocks are not those of its choice")
        if weights > MAX_WEIGHTS:
            raise ValueError(f"its space has up to {weights:,} weights, at most {MAX_WEIGHTS:,} are supported")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.origin().input_shape

    @property
    def name(self) -> str:
        """Name of the space."""
        return str(self.space["name"])

    @property
    def sha256(self) -> str:
        """Hash of `architecture.json`."""
        return hashlib.sha256(to_json(self)).hexdigest()

    def origin(self, module: "torch.nn.Module | None" = None) -> Space:
        """Return the space that it was chosen from.

        Args:
            module: the unpruned network, if it is the user's own; without it, only methods that need the module fail.
        """
        return spaces.from_record(self.space, make=None if module is None else lambda: module)

    def network(self) -> list[BlockSpec]:
        """Return the blocks of the deployed network, in order.

        Raises:
            SearchError: the file does not list the blocks.
        """
        return self.origin().network(self.choice)

    def unpruned(self) -> "torch.nn.Module":
        """Return the unpruned network in its training form, which fits `baseline.safetensors`.

        Raises:
            SearchError: it is the user's own module, which is not stored in a file.
        """
        return self.origin().module()

    def build(self, module: "torch.nn.Module | None" = None) -> "torch.nn.Module":
        """Return the network in its training form, which fits `weights.safetensors`.

        In a space of widths it has full width, with a `ChannelMask` after every group that lost channels. The weights
        determine which channels are kept; without them, the first ones are.

        Args:
            module: the unpruned network, if it is the user's own.

        Raises:
            SearchError: the module is missing, or has other groups.
        """
        return self.origin(module).module(self.choice)


def keys(space: Space, choice: Choice) -> tuple[str, ...]:
    """Return the keys of the blocks of a network."""
    return tuple(block.key for block in space.network(choice))


class _Layer1(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer of a chain or a channel group of a network, in architecture/1."""

    name: str
    op: Literal["conv", "group"]
    kernel: Literal[3] | None
    stride: int | None
    act: Literal["relu"] | None
    width: int
    of: int


def architecture_from_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade architecture/1 to architecture/2.

    The space of widths of a named network is rebuilt, which needs torch. That of a user's own module comes without its
    layers, which architecture/1 did not list.

    Raises:
        ValueError: the layers are not those of the space.
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
    """Upgrade architecture/2 to architecture/3: all networks were classifiers, whose fields stay the same."""
    return {**fields, "schema": "architecture/3"}


def architecture_from_3(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade architecture/3 to architecture/4: there was only one device."""
    return {**fields, "schema": SCHEMA}


def load_architecture(path: str | Path) -> Architecture:
    """Read an `architecture.json` of any version.

    Raises:
        SearchError: the file is missing or damaged.
    """
    upgrades = {
        "architecture/1": architecture_from_1,
        "architecture/2": architecture_from_2,
        "architecture/3": architecture_from_3,
    }
    return read_json(Path(path), Architecture, upgrades)
