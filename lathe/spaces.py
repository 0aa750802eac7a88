"""Find the space that a command line names, and describe it."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency.errors import LatencyError, import_extra

if TYPE_CHECKING:
    from lathe.cli import SpaceCommand
    from lathe.flags import SizeFlags
    from search.space import Space


@dataclass(frozen=True, kw_only=True)
class SpaceFacts:
    """Result of `lathe space`; parameters and MACs are those of the unpruned network, as trained and as deployed."""

    name: str
    size: int
    blocks: int
    params: int
    macs: int
    deployed_params: int
    deployed_macs: int


def space_of(name: str, sizes: "SizeFlags", classes: int | None = None) -> "Space":
    """Return a space by name, with the sizes that a command gives; traced networks need the extra `train`."""
    from search import spaces

    if spaces.is_traced(name):
        import_extra("torch", "train")

    given = {"resolution": sizes.resolution, "channels": sizes.channels, "cells_per_stage": sizes.cells}
    return spaces.get(name, classes=classes, **given, input_shape=sizes.input_shape)


def list_spaces(command: "SpaceCommand") -> tuple[str, ...]:
    """Return the names of all spaces.

    Raises:
        LatencyError: the command also names a space.
    """
    if command.space is not None:
        raise LatencyError(f"--list names every space: leave out {command.space!r}, or --list")
    from search import spaces

    return spaces.names()


def named_space(command: "SpaceCommand") -> "Space":
    """Return the space that a command names.

    Raises:
        LatencyError: none is named.
        SearchError: the space is unknown.
    """
    if command.space is None:
        raise LatencyError("name a space, such as `lathe space repvgg-mini`, or list all by `lathe space --list`")
    return space_of(command.space, command, command.classes)


def describe_space(command: "SpaceCommand") -> SpaceFacts:
    """Return the size of a space and of its unpruned network.

    Raises:
        LatencyError: a table is given, but no single network to predict.
    """
    if command.table is not None:
        raise LatencyError(
            f"--table {command.table} predicts one network: name a cell by --arch, or leave the table out"
        )
    require_no_batch(command)
    space = named_space(command)
    return SpaceFacts(
        name=space.name,
        size=space.size(),
        blocks=len(space.blocks()),
        params=space.parameters(deployed=False),
        macs=space.macs(deployed=False),
        deployed_params=space.parameters(),
        deployed_macs=space.macs(),
    )


def require_no_batch(command: "SpaceCommand") -> None:
    """Require that a command without --table has no --batch.

    Raises:
        LatencyError: it has.
    """
    if command.batch is not None:
        raise LatencyError(f"--batch {command.batch} is of the prediction by --table: give a table, or leave it out")


def space_words(space: "Space", sizes: "SizeFlags") -> str:
    """Return the command-line words for a space and its sizes.

    A user's own network determines its number of classes.
    """
    from search.spaces import own

    classes = "" if own.is_own(space.name) else f" --classes {space.classes}"
    return f"{shlex.quote(space.name)}{classes}{sizes.words()}"
