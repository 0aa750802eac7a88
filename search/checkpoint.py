"""Training checkpoints in a single safetensors file: tensors, with all other state as JSON in the metadata.

With a single file, a kill cannot mix the numbers of one epoch with the tensors of another. State dicts of networks,
weight averages and optimizers are stored completely, including scalar slots and parameter groups. Random generator
states are not stored, because every epoch uses generators seeded by its number.
"""

import contextlib
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

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
# checkpoint/2: state dicts of any number of objects, nested. The first version had no schema, and tensors of one
# optimizer alone; it is not upgraded: scalar slots and parameter groups are not in it.

_STATE = "state"
_RERUN = "run `lathe search` again, into a new directory"


class Checkpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON part of a checkpoint."""

    schema: str
    head: Any
    """the caller's data, as JSON"""
    states: dict[str, Any]
    """state dict of each object by name, with references to tensors in the file"""


def save(path: Path, head: Struct, states: Mapping[str, Mapping[Any, Any]]) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        head: the caller's data.
        states: state dicts by name: any nesting of dicts, lists and tuples of tensors, numbers, text and None.
    """
    tensors: dict[str, Tensor] = {}
    numbers = Checkpoint(
        schema=SCHEMA,
        head=msgspec.to_builtins(head),
        states={name: _split(state, name, tensors) for name, state in states.items()},
    )
    write_tensors(path, tensors, {_STATE: msgspec.json.encode(numbers).decode()})


def load(path: Path, kind: type[H]) -> tuple[H, dict[str, Any]]:
    """Return head and state dicts of a checkpoint.

    Raises:
        SearchError: the file is damaged, or of a version that cannot be resumed.
    """
    tensors, metadata = read_tensors(path)
    with raised_as(SearchError, _RERUN):
        fields: dict[str, Any] = decode_json(metadata.get(_STATE, ""), dict[str, Any], path)
    if fields.get("schema") != SCHEMA:
        raise SearchError(f"{path} is of an earlier version, which left out what is needed to go on: {_RERUN}")
    with fitting(path):
        numbers = msgspec.convert(fields, Checkpoint)
        return msgspec.convert(numbers.head, kind), {
            name: _joined(state, tensors) for name, state in numbers.states.items()
        }


@contextlib.contextmanager
def fitting(path: Path) -> Generator[None, None, None]:
    """Report errors raised in the block as a checkpoint that is damaged or belongs to another training.

    Raises:
        SearchError: instead of the original error.
    """
    try:
        yield
    except (msgspec.ValidationError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise SearchError(f"{path} does not fit this search ({one_line(error, limit=200)}): {_RERUN}") from error


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict into an optimizer.

    Slots of a parameter's shape get its memory layout, since the layout affects summation order.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def laid_out(index: int, slot: object) -> object:
        parameter = parameters[index]
        if not isinstance(slot, Tensor) or slot.shape != parameter.shape:
            return slot
        return torch.empty_like(parameter, dtype=slot.dtype).copy_(slot)

    slots = {
        index: {name: laid_out(index, slot) for name, slot in own.items()} for index, own in state["state"].items()
    }
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})


def _split(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    """Return a nested value as JSON, and move its tensors to `tensors`, named by their paths."""
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case Mapping():
            items = cast("Mapping[str | int, object]", value).items()
            return {"dict": [[key, _split(inner, f"{name}.{key}", tensors)] for key, inner in items]}
        case list() | tuple():
            sequence = cast("Sequence[object]", value)
            return {
                "list" if isinstance(value, list) else "tuple": [
                    _split(inner, f"{name}.{index}", tensors) for index, inner in enumerate(sequence)
                ]
            }
        case float() if not math.isfinite(value):  # JSON has none
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise AssertionError(f"{name}: a checkpoint holds no {type(value).__name__}")


def _joined(value: object, tensors: Mapping[str, Tensor]) -> Any:
    """Invert `_split`."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = cast("dict[str, Any]", value).items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "dict":
            return {key: _joined(item, tensors) for key, item in inner}
        case "list":
            return [_joined(item, tensors) for item in inner]
        case "tuple":
            return tuple(_joined(item, tensors) for item in inner)
        case "float":
            return float(inner)
        case _:
            raise ValueError(f"unknown kind {kind!r}")
