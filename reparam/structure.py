"""Traverse the tensors in tuples, lists, mappings and dataclasses that networks take and return."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Path = tuple[str, ...]
"""Keys, indices and field names that lead to a value, outermost first."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value in a structure that is neither a container nor None, with its path, in order."""
    parts = _items(value)
    if parts is None:
        if value is not None:
            yield path, value
        return
    for name, part in parts:
        yield from leaves(part, (*path, name))


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Copy a structure and replace every tensor, in the order of `leaves`; other values stay the same."""
    if isinstance(value, Tensor):
        return change(value)
    parts = _items(value)
    if parts is None:
        return value
    changed = {name: map_tensors(part, change) for name, part in parts}
    if isinstance(value, Mapping):
        mapping: Any = copy.copy(value)
        for key in value:
            mapping[key] = changed[str(key)]
        return mapping
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **changed)  # pyright: ignore[reportArgumentType]
    kind: Any = type(value)
    return kind(*changed.values()) if hasattr(value, "_fields") else kind(changed.values())


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Return the items of a container by name, or None if the value is not a container."""
    if isinstance(value, Mapping):
        return [(str(key), value[key]) for key in value]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return list(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    return None
