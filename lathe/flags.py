"""Ranges of numeric flags, which their types do not express, and flags that several commands share."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from tyro.conf import Positional, arg

from latency.errors import LatencyError


@dataclass(frozen=True)
class Between:
    """A closed range; NaN is outside it.

    Attributes:
        low: smallest value.
        high: largest value.
    """

    low: float
    high: float


T = TypeVar("T")
_NO_DEFAULT_SHOWN = arg(help_behavior_hint="")
Maybe = Annotated[T | None, _NO_DEFAULT_SHOWN]
"""A flag that may be left out. Its help says what happens then, so tyro's `(default: None)` is not shown."""
AnyNumber = Annotated[tuple[T, ...], _NO_DEFAULT_SHOWN]
"""Values of which there may be none; tyro would show `(default: )`."""

Count = Annotated[int, Between(0, 10**6)]
Anchors = Annotated[int, Between(1, 10**6)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Classes = Annotated[int, Between(2, 10**6)]
Resolution = Annotated[int, Between(1, 2**14)]
Channels = Annotated[int, Between(1, 2**20)]
CellChannels = Annotated[int, Between(1, 4096)]
"""Channels of the first stage of a cell space."""
Cells = Annotated[int, Between(1, 1000)]
"""Cells per stage."""
Epochs = Annotated[int, Between(1, 10**6)]
Seeds = Annotated[int, Between(1, 10**4)]
Jobs = Annotated[int, Between(1, 1024)]
Gpus = Annotated[float, Between(0, 1024)]
Batch = Annotated[int, Between(1, 2**16)]
Shards = Annotated[int, Between(1, 10**4)]
Threads = Annotated[int, Between(1, 2**12)]
Milliseconds = Annotated[float, Between(1e-6, 1e7)]
Fraction = Annotated[float, Between(1e-6, 1e3)]
"""Fraction of the unpruned network's cost."""
Relative = Annotated[float, Between(1e-6, 1.0)]
"""Relative error or drift."""
Mebibytes = Annotated[int, Between(1, 2**24)]
BuildCount = Annotated[int, Between(1, 100)]
BuildLevel = Annotated[int, Between(0, 5)]


@dataclass(frozen=True, kw_only=True)
class SizeFlags:
    """Sizes that override those of a space."""

    resolution: Maybe[Resolution] = None
    """height and width of the input in pixels (default: the space's own)"""
    channels: Maybe[CellChannels] = None
    """for a space of cells: channels of the first stage (default: the space's own)"""
    cells: Maybe[Cells] = None
    """for a space of cells: cells per stage (default: the space's own)"""
    input: Maybe[str] = None
    """for your own network, FILE.py:FUNCTION: channels, height and width of an image, such as 3x224x224"""

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """The shape in `input`.

        Raises:
            LatencyError: `input` is not such a shape.
        """
        return image_shape(self.input)

    def words(self) -> str:
        """Return the flags as on the command line, such as ` --channels 8 --cells 1`."""
        return "".join(
            f" --{field.name} {value}"
            for field in fields(SizeFlags)
            if (value := getattr(self, field.name)) is not None
        )


@dataclass(frozen=True, kw_only=True)
class SizeFlagsWithClasses(SizeFlags):
    """Sizes, with the number of classes for commands without data to take it from."""

    classes: Maybe[Classes] = None
    """number of classes (default: the space's own)"""

    def words_with_classes(self) -> str:
        """Return the flags as on the command line, such as ` --classes 10 --cells 1`."""
        return (f" --classes {self.classes}" if self.classes is not None else "") + self.words()


def image_shape(text: str | None) -> tuple[int, int, int] | None:
    """Return channels, height and width from a text such as 3x224x224.

    Raises:
        LatencyError: the text is not such a shape.
    """
    if text is None:
        return None
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and 0 < int(size) < 2**14 for size in sizes):
        raise LatencyError(f"--input {text!r} is not CHANNELSxHEIGHTxWIDTH: give it as 3x224x224")
    channels, height, width = map(int, sizes)
    return channels, height, width


def require_ranges(command: object) -> None:
    """Require every number of a command to be in range, and every flag that takes several values to have at least one.

    Raises:
        LatencyError: a number is out of range, or there is no value; names the flag.
    """
    hints = typing.get_type_hints(type(command), include_extras=True)
    for field in fields(command):  # pyright: ignore[reportArgumentType] -- a command is a dataclass
        value, flag = getattr(command, field.name), f"--{field.name.replace('_', '-')}"
        if value == () and field.default != ():
            positional = Positional[Any].__metadata__[0] in getattr(hints[field.name], "__metadata__", ())
            raise LatencyError(f"name the {field.name}" if positional else f"{flag} needs a value")
        for number in () if value is None else value if isinstance(value, tuple) else (value,):
            require_range(flag, number, hints[field.name])


def require_range(flag: str, number: float, hint: Any) -> None:
    """Require a number to be in the range of its flag's type.

    Raises:
        LatencyError: the number is out of range; names the flag.
    """
    for limits in ranges(hint):
        if not limits.low <= number <= limits.high:
            raise LatencyError(
                f"{flag} must be from {_number(limits.low)} to {_number(limits.high)}, found {_number(number)}"
            )


def ranges(hint: Any) -> Iterator[Between]:
    """Yield the ranges in a field's type, including those inside unions."""
    yield from (part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Between))
    for part in typing.get_args(hint):
        yield from ranges(part)


def _number(value: float) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 2**63 else f"a number of {value.bit_length()} bits"
