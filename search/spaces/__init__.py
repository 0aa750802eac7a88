"""Search spaces and single networks, by name."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from search.errors import SearchError
from search.space import Space
from search.spaces import cells, gpunet, mobilenet, own, prunet, records, repvgg, resnet
from search.spaces.cells import Cells
from search.spaces.chain import Chain, Layer
from search.spaces.fixed import Fixed
from search.spaces.free import FREE_WIDTHS, free_widths
from search.spaces.layered import Layered, MultiBlock, StochasticLayer
from search.spaces.prunable import AffineWidth, HasSites, Prunable, Site, Stage, Widths
from search.spaces.traced import Traced, of_module, traced

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FREE_WIDTHS",
    "WIDTHS",
    "AffineWidth",
    "Cells",
    "Chain",
    "Fixed",
    "HasSites",
    "Layer",
    "Layered",
    "MultiBlock",
    "Prunable",
    "Site",
    "Stage",
    "StochasticLayer",
    "Traced",
    "Widths",
    "canonical",
    "free_widths",
    "from_record",
    "get",
    "is_named_widths",
    "is_traced",
    "names",
    "of_module",
    "with_cells",
    "with_layers",
    "with_sites",
    "with_widths",
]

WIDTHS = "/widths"
"""Suffix of a single network's name that denotes the space of its widths, such as resnet-18/widths."""


def is_named_widths(name: str) -> bool:
    """Return whether a name denotes the space of widths of a known single network."""
    network, _, kind = name.partition("/")
    return f"/{kind}" in (WIDTHS, FREE_WIDTHS) and network in names()


def is_traced(name: str) -> bool:
    """Return whether a space is read from a module, which needs torch."""
    return own.is_own(name) or name.endswith((WIDTHS, FREE_WIDTHS))


def names() -> tuple[str, ...]:
    """Return the names that `get` knows."""
    return (
        "repvgg-mini",
        *prunet.names(),
        *gpunet.names(),
        *cells.names(),
        *repvgg.names(),
        *resnet.names(),
        *mobilenet.names(),
    )


def canonical(name: str) -> str:
    """Return the name in `names` for an official network name, such as repvgg-b1-g4 for RepVGG-B1g4 or repvgg_b1g4.

    Ignores case and the separators of model zoos. Returns other names unchanged.
    """
    by_plain_name = {_plain(one): one for one in names()}
    network, slash, rest = name.partition("/")
    return by_plain_name.get(_plain(network), network) + slash + rest


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name.lower())


def get(
    name: str,
    *,
    classes: int | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    cells_per_stage: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> Space:
    """Return a space by its name.

    Args:
        name: one of `names()`, or an official name, see `canonical`. The suffix `/widths` to the name of a single
            network denotes the space of its widths, which needs torch; `/free-widths` denotes the space in which the
            widths of layers that are added may differ.
        classes: number of classes; the space's default if not given.
        resolution: height and width of the input in pixels; the space's default if not given.
        channels: channels of the first stage, for spaces of cells only; the space's default if not given.
        cells_per_stage: cells of each stage, for spaces of cells only; the space's default if not given.
        input_shape: for a user's own network only, see `own.space`.

    Raises:
        SearchError: the name is unknown, or the space does not support one of the numbers.
        ReparamError: the user's own network cannot be read.
    """
    if own.is_own(name):
        return _own(
            name,
            input_shape,
            classes=classes,
            resolution=resolution,
            channels=channels,
            cells_per_stage=cells_per_stage,
        )
    if input_shape is not None:
        raise SearchError(
            f"--input is of a network of one's own, FILE.py:FUNCTION; found the space {name!r}: give --resolution"
        )
    options = {key: value for key, value in {"classes": classes, "resolution": resolution}.items() if value is not None}
    name = canonical(name)
    if name in cells.names():
        return cells.named(name, **options, channels=channels, cells=cells_per_stage)
    _require_no_cells(name, {"--channels": channels, "--cells": cells_per_stage})
    if name.endswith(FREE_WIDTHS):
        return free_widths(
            _single(get(name.removesuffix(FREE_WIDTHS), classes=classes, resolution=resolution), FREE_WIDTHS)
        )
    if name.endswith(WIDTHS):
        return _widths(get(name.removesuffix(WIDTHS), classes=classes, resolution=resolution))
    if name == "repvgg-mini":
        return repvgg.mini(**options)
    for family in (prunet, gpunet, repvgg, resnet, mobilenet):
        if name in family.names():
            return family.named(name, **options)
    raise _unknown(name)


def from_record(record: Mapping[str, Any], make: "Callable[[], nn.Module] | None" = None) -> Space:
    """Restore a space from its record.

    Args:
        record: as returned by `Space.record`.
        make: returns the unpruned network, if the space is that of a user's own module; only methods that need the
            module fail without it.

    Raises:
        SearchError: the record is damaged, or its kind is unknown to this version.
    """
    return records.from_record(record, make or _maker(record))


def _maker(record: Mapping[str, Any]) -> "Callable[[], nn.Module]":
    """Return a function that makes the network of a space of widths by its name.

    For a user's own network it calls the user's function.
    """

    def module() -> "nn.Module":
        name, (_, height, _) = str(record["name"]), record["input_shape"]
        if own.is_own(name):
            return own.maker(name)()
        if not is_named_widths(name):
            raise SearchError(
                f"architecture {name!r} is of a module of your own: give it, as in architecture.build(module)"
            )
        return get(name.partition("/")[0], classes=record["classes"], resolution=height).module()

    return module


def _unknown(name: str) -> SearchError:
    if name.endswith(".onnx"):
        return SearchError(
            f"{name} is an ONNX file, not a space: `lathe predict` and `lathe export` take it; a search needs the "
            "network as FILE.py:FUNCTION"
        )
    near = ", ".join(difflib.get_close_matches(name, names()))
    return SearchError(f"unknown space {name!r}: {f'try {near}, or ' if near else ''}list all by `lathe space --list`")


def _require_no_cells(name: str, sizes: Mapping[str, int | None]) -> None:
    for flag, value in sizes.items():
        if value is not None:
            raise SearchError(
                f"{flag} {value} is of spaces of cells, {' or '.join(cells.names())}; found the space {name!r}: leave "
                "it out"
            )


def _own(name: str, input_shape: tuple[int, int, int] | None, *, classes: int | None, **sizes: int | None) -> Space:
    if given := [flag.split("_")[0] for flag, value in sizes.items() if value is not None]:
        raise SearchError(f"--{given[0]}: {name} makes its network in one size: leave it out")
    own_space = own.space(name, input_shape)
    if classes not in (None, own_space.classes):
        raise SearchError(
            f"{name} makes a network of {own_space.classes} classes, and there are {classes}: change its last layer"
        )
    return own_space


def with_widths(space: Space, method: str) -> Prunable:
    """Require a space of open widths.

    Args:
        space: any space.
        method: name of the method that requires it, for the message.

    Raises:
        SearchError: the space has no open widths.
    """
    if not isinstance(space, Prunable):
        raise SearchError(
            f"{method} searches widths, and {space.name} has none that are open: choose repvgg-mini, or such as "
            "resnet-18/widths"
        )
    return space


def with_cells(space: Space, method: str) -> Cells:
    """Require a space of cells.

    Args:
        space: any space.
        method: name of the method that requires it, for the message.

    Raises:
        SearchError: the space has no cells.
    """
    if not isinstance(space, Cells):
        raise SearchError(
            f"{method} searches operations of cells, and {space.name} has none: choose nasbench201-small or nasbench201"
        )
    return space


def with_layers(space: Space, method: str) -> Layered:
    """Require a space whose layers each choose a block.

    Args:
        space: any space.
        method: name of the method that requires it, for the message.

    Raises:
        SearchError: the space has no such layers.
    """
    if not isinstance(space, Layered):
        raise SearchError(
            f"{method} searches blocks of layers, and {space.name} has none to choose from: choose prunet-mini or "
            "prunet"
        )
    return space


def with_sites(space: Space) -> HasSites:
    """Require a space that has blocks of open widths.

    Raises:
        SearchError: the space has none.
    """
    if not isinstance(space, Prunable | Layered):
        raise SearchError(f"{space.name} has no blocks of open widths: ask for the cost of whole blocks")
    return space


def _widths(space: Space) -> Space:
    fixed = _single(space, WIDTHS)
    import torch

    return traced(fixed.module, torch.zeros(1, *space.input_shape), name=space.name + WIDTHS, stages=fixed.stages())


def _single(space: Space, kind: str) -> Fixed:
    if not isinstance(space, Fixed):
        raise SearchError(
            f"{space.name}{kind}: only a single network has a space of its widths, such as resnet-18{kind}"
        )
    return space
