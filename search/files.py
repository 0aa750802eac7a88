"""JSON of msgspec structs, to and from files."""

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
"""Makes the fields of a later schema of those of an earlier one."""

_AGAIN = "give the directory of a finished search, or run `lathe search` again, into a new directory"


def to_json(value: msgspec.Struct) -> bytes:
    """Indented JSON; the same value always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, kind: type[T], upgrades: Mapping[str, Upgrade] = MappingProxyType({})) -> T:
    """Read a file that `to_json` wrote.

    Args:
        path: the file.
        kind: what it holds, in its present version.
        upgrades: by earlier schema.

    Raises:
        SearchError: no such file, or a content that is not a `kind`; names the file and the field.
    """
    with raised_as(SearchError, _AGAIN):
        if not upgrades:
            return decoding.read_json(path, kind)
        fields = decoding.read_json(path, dict)
    return upgraded(fields, kind, upgrades, path)


def upgraded(fields: Mapping[str, Any], kind: type[T], upgrades: Mapping[str, Upgrade], where: object) -> T:
    """Fields of any version as a value of the present one.

    Raises:
        SearchError: they are not of a version that is known, or damaged; `where` begins the message.
    """
    try:
        while (schema := str(fields.get("schema"))) in upgrades:
            fields = upgrades[schema](fields)
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SearchError(f"{where} is damaged ({error!r}): {_AGAIN}") from error


def read_json_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """The lines of a file, each a value of its own.

    Raises:
        SearchError: a line is not a `kind`; names it.
    """
    with raised_as(SearchError, _AGAIN):
        yield from decoding.read_json_lines(path, kind)
