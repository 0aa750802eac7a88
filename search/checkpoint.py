"""All that a training needs to go on, in one file: numbers as JSON in the metadata, tensors beside them.

One file, so that a kill cannot leave the numbers of one epoch with the tensors of another. State dicts of any object are kept as they
are, of networks, of averages of weights and of optimizers: with their scalar slots as scalars, and with what a parameter group says.
No state of a random generator is in it, since every epoch draws from generators that are seeded by its number.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from msgspec import Struct
from torch import Tensor
from torch.optim import Optimizer

from latency.decoding import decode_json
from latency.errors import one_line
from latency.files import raised_as
from search.errors import SearchError
from search.tensors import read_tensors, write_tensors

H = TypeVar("H", bound=Struct)

SCHEMA = "checkpoint/2"
# checkpoint/2: state dicts of any number of objects, nested. The first version had no schema, and tensors of one optimizer alone; it
# is not upgraded: scalar slots and parameter groups are not in it.

_STATE = "state"
_AGAIN = "run `lathe search` again, into a new directory"


class Checkpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of a checkpoint; the tensors that `states` names stand beside them."""

    schema: str
    head: Any
    """of the one who saves: JSON"""
    states: dict[str, Any]
    """of each object by name, its state dict with places for its tensors"""


def save(path: Path, head: Struct, states: Mapping[str, Mapping[Any, Any]]) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        head: numbers of whoever saves.
        states: state dicts by name, nested as they like: of tensors, numbers, text, None, lists, tuples and dicts of them.
    """
    tensors: dict[str, Tensor] = {}
    numbers = Checkpoint(
        schema=SCHEMA, head=msgspec.to_builtins(head), states={name: _split(state, name, tensors) for name, state in states.items()}
    )
    write_tensors(path, tensors, {_STATE: msgspec.json.encode(numbers).decode()})


def load(path: Path, kind: type[H]) -> tuple[H, dict[str, Any]]:
    """Head and state dicts of a checkpoint.

    Raises:
        SearchError: it is damaged, or of a version that cannot go on.
    """
    tensors, metadata = read_tensors(path)
    with raised_as(SearchError, _AGAIN):
        found = decode_json(metadata.get(_STATE, ""), dict, path)
    if found.get("schema") != SCHEMA:
        raise SearchError(f"{path} is of an earlier version, which left out what is needed to go on: {_AGAIN}")
    with fitting(path):
        numbers = msgspec.convert(found, Checkpoint)
        return msgspec.convert(numbers.head, kind), {name: _joined(state, tensors) for name, state in numbers.states.items()}


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """What goes wrong in the block is a fault of a checkpoint: it is damaged, or of another training.

    Raises:
        SearchError: in the place of what the block raised.
    """
    try:
        yield
    except (msgspec.ValidationError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise SearchError(f"{path} does not fit this search ({one_line(error, limit=200)}): {_AGAIN}") from error


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Fill an optimizer with a state dict; slots of a parameter's shape get its memory layout, since another is summed in another order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def laid_out(index: int, slot: Any) -> Any:
        parameter = parameters[index]
        return torch.empty_like(parameter, dtype=slot.dtype).copy_(slot) if _is_tensor_of(slot, parameter) else slot

    slots = {index: {name: laid_out(index, slot) for name, slot in found.items()} for index, found in state["state"].items()}
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})


def _is_tensor_of(slot: Any, parameter: Tensor) -> bool:
    return isinstance(slot, Tensor) and slot.shape == parameter.shape


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A nested value as JSON; its tensors go to `tensors`, by where they were found."""
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case Mapping():
            return {"dict": [[key, _split(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]}
        case list() | tuple():
            return {type(value).__name__: [_split(inner, f"{name}.{index}", tensors) for index, inner in enumerate(value)]}
        case float() if not math.isfinite(value):  # JSON has none
            return {"float": str(value)}
    assert value is None or isinstance(value, bool | int | float | str), f"{name}: a checkpoint holds no {type(value).__name__}"
    return value


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_split`."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "dict":
            return {key: _joined(found, tensors) for key, found in inner}
        case "list":
            return [_joined(found, tensors) for found in inner]
        case "tuple":
            return tuple(_joined(found, tensors) for found in inner)
        case "float":
            return float(inner)
    raise ValueError(f"nothing is kept as a {kind}")
