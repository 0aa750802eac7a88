"""Restore spaces from their records in files; the inverse of `Space.record`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from latency.block import BlockSpec
from latency.errors import LatencyError
from latency.values import Pixels, Width
from search.errors import SearchError
from search.space import Space
from search.spaces.cells import MAX_CELLS, Cells
from search.spaces.chain import Chain
from search.spaces.fixed import Fixed
from search.spaces.layered import Layered, MultiBlock, StochasticLayer
from search.spaces.prunable import Prunable, Site, Stage
from search.spaces.traced import Traced

if TYPE_CHECKING:
    from torch import nn


class _Facts(Struct, frozen=True, kw_only=True):
    """Numbers in records, with their limits."""

    name: str
    input_shape: tuple[Width, Pixels, Pixels]
    classes: Width
    granularity: Width = 1
    points: Width = 2
    channels: Width = 1
    cells: Annotated[int, Meta(ge=1, le=MAX_CELLS)] = 1


def from_record(record: Mapping[str, Any], make: "Callable[[], nn.Module]") -> Space:
    """Restore a space from its record.

    Args:
        record: as returned by `Space.record`.
        make: returns the unpruned network of a space of widths; called only when the network is needed.

    Raises:
        SearchError: the record is damaged, or its kind is unknown to this version.
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], Space]] = {
        "cells": lambda fields: msgspec.convert(fields, Cells),
        "chain": lambda fields: msgspec.convert(fields, Chain),
        "fixed": _fixed,
        "free": lambda fields: _traced(fields, make),
        "layered": _layered,
        "staged": lambda fields: _traced(fields, make),
        "traced": lambda fields: _traced(fields, make),
    }
    kind = record.get("kind")
    if kind not in kinds:
        raise SearchError(
            f"the record of a space has the kind {kind!r}: known are {', '.join(kinds)}; install a newer version of "
            "lathe"
        )
    try:
        _facts(record)
        space = kinds[kind]({name: value for name, value in record.items() if name != "kind"})
    except (msgspec.ValidationError, LatencyError, KeyError, TypeError) as error:
        raise SearchError(f"the record of a space of the kind {kind} is damaged: {error}") from error
    if isinstance(space, Prunable) and (wrong := _inconsistency(space)):
        raise SearchError(f"the record of a space of the kind {kind} is damaged: {wrong}")
    written = space.record()
    if wrong := sorted(name for name in record.keys() | written.keys() if record.get(name) != written.get(name)):
        raise SearchError(
            f"the record of a space of the kind {kind} is damaged: field {wrong[0]} is not what it is written as"
        )
    return space


def _inconsistency(space: Prunable) -> str:
    """Return what is inconsistent in the groups and stages, or "" if nothing is."""
    if len(dict(space.groups)) < len(space.groups):
        return "two groups have one name"
    if isinstance(space, Traced) and len(space.shortcuts) != (joins := sum(site.joins for site in space.places)):
        return f"it has {len(space.shortcuts)} shortcuts, and {joins} sites that join"
    sites = len(space.sites()) if space.stages else 0
    for stage in space.stages:
        for block in stage.blocks:
            if sites and (beyond := [site for site in block.sites if not 0 <= site < sites]):
                return f"stage {stage.name} has the site {beyond[0]}, of {sites}"
    return "two stages have one name" if len({stage.name for stage in space.stages}) < len(space.stages) else ""


def _fixed(fields: Mapping[str, Any]) -> Fixed:
    return Fixed(
        **_facts(fields), trained_as=fields["trained_as"], sequence=tuple(map(BlockSpec.parse, fields["sequence"]))
    )


def _layered(fields: Mapping[str, Any]) -> Layered:
    def option(fields: Mapping[str, Any]) -> MultiBlock:
        return MultiBlock(name=fields["name"], spec=BlockSpec.parse(fields["spec"]), hidden=tuple(fields["hidden"]))

    layers = tuple(
        StochasticLayer(name=layer["name"], skippable=layer["skippable"], options=tuple(map(option, layer["options"])))
        for layer in fields["layers"]
    )
    return Layered(**_facts(fields), layers=layers)


def _traced(fields: Mapping[str, Any], make: "Callable[[], nn.Module]") -> Traced:
    stages, shortcuts = msgspec.convert(
        (fields.get("stages", ()), fields.get("shortcuts", ())), tuple[tuple[Stage, ...], tuple[str, ...]]
    )
    members = msgspec.convert(fields["members"], tuple[tuple[str, int], ...])
    places = msgspec.convert(fields["places"], tuple[Site, ...])
    granularity, points = msgspec.convert((fields["granularity"], fields["points"]), tuple[int, int])
    return Traced(
        **_facts(fields),
        granularity=granularity,
        points=points,
        members=members,
        places=places,
        named_stages=stages,
        shortcuts=shortcuts,
        make=make,
    )


def _facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields common to all spaces."""
    facts = msgspec.convert(fields, _Facts)
    return {"name": facts.name, "input_shape": facts.input_shape, "classes": facts.classes}
