"""Write msgspec structs to JSON files, and read them in any version."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from latency import decoding
from latency.files import raised_as
from search.errors import SearchError

T = TypeVar("T")

Upgrade = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Converts the fields of a schema to those of the next one."""

_RERUN = "give the directory of a finished search, or run `lathe search` again, into a new directory"


def to_json(value: msgspec.Struct) -> bytes:
    """Return indented JSON; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, kind: type[T], upgrades: Mapping[str, Upgrade] = MappingProxyType({})) -> T:
    """Read a file that `to_json` wrote.

    Args:
        path: the file.
        kind: type of its content, in the current version.
        upgrades: upgrades by earlier schema.

    Raises:
        SearchError: there is no such file, or its content is not a `kind`; the message names the file and the field.
    """
    with raised_as(SearchError, _RERUN):
        if not upgrades:
            return decoding.read_json(path, kind)
        fields = decoding.read_json(path, dict[str, Any])
    return upgraded(fields, kind, upgrades, path)


def upgraded(fields: Mapping[str, Any], kind: type[T], upgrades: Mapping[str, Upgrade], where: object) -> T:
    """Convert fields of any version to a value of the current one.

    Raises:
        SearchError: the version is unknown, or the fields are damaged; the message starts with `where`.
    """
    try:
        while (schema := str(fields.get("schema"))) in upgrades:
            fields = upgrades[schema](fields)
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SearchError(f"{where} is damaged ({error!r}): {_RERUN}") from error


def read_json_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """Yield one value per line of a file.

    Raises:
        SearchError: a line is not a `kind`; the message names it.
    """
    with raised_as(SearchError, _RERUN):
        yield from decoding.read_json_lines(path, kind)
