"""Traverse the tensors in tuples, lists, mappings and dataclasses that networks take and return."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import Tensor

Path = tuple[str, ...]
"""Keys, indices and field names that lead to a value, outermost first."""

Arguments: TypeAlias = tuple[Any, ...]
"""Positional arguments of a network: tensors, structures of tensors, constants."""

Example: TypeAlias = Tensor | Arguments
"""The only argument of a network, a tensor, or all of its positional arguments."""


def arguments_of(example: Example) -> Arguments:
    """Return the positional arguments that an example stands for."""
    return example if isinstance(example, tuple) else (example,)


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield every value in a structure that is neither a container nor None, with its path, in order."""
    items = _items(value)
    if items is None:
        if value is not None:
            yield path, value
        return
    for name, item in items:
        yield from leaves(item, (*path, name))


def tensor_leaves(value: object) -> list[Tensor]:
    """Return the tensors in a structure, in order; other values are skipped."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def map_tensors(value: object, change: Callable[[Tensor], object]) -> Any:
    """Copy a structure and replace every tensor, in the order of `leaves`; other values stay the same."""
    if isinstance(value, Tensor):
        return change(value)
    items = _items(value)
    if items is None:
        return value
    changed = {name: map_tensors(item, change) for name, item in items}
    if isinstance(value, Mapping):
        mapping = copy.copy(cast("dict[object, object]", value))
        for key in mapping:
            mapping[key] = changed[str(key)]
        return mapping
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **changed)
    kind = cast("Callable[..., object]", type(value))
    return kind(*changed.values()) if hasattr(value, "_fields") else kind(changed.values())


def _items(value: object) -> list[tuple[str, object]] | None:
    """Return the items of a container by name, or None if the value is not a container."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return [(str(key), mapping[key]) for key in mapping]
    if isinstance(value, tuple | list):
        sequence = cast("Sequence[object]", value)
        names = getattr(sequence, "_fields", None) or map(str, range(len(sequence)))
        return list(zip(names, sequence, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    return None
