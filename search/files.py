"""JSON of msgspec structs, to and from files."""

from pathlib import Path
from typing import TypeVar

import msgspec

from latency import decoding
from latency.files import raised_as
from search.errors import SearchError

T = TypeVar("T")


def to_json(value: msgspec.Struct) -> bytes:
    """Indented JSON; the same value always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, kind: type[T]) -> T:
    """Read a file that `to_json` wrote.

    Raises:
        SearchError: no such file, or a content that is not a `kind`; names the file and the field.
    """
    with raised_as(SearchError, "give the directory of a finished search, or run `lathe search` again, into a new directory"):
        return decoding.read_json(path, kind)
