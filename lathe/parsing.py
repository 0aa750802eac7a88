"""Read command lines with tyro; what it rejects becomes one line."""

import contextlib
import io
import re
import typing
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from latency.arguments import require_sound
from latency.process import BAD_INPUT
from lathe.flags import require_ranges

REPEATABLE = ("--shape", "--samples", "--set", "--also")
"""Flags that can be repeated."""

_constructors = ConstructorRegistry()
"""How tyro reads the fields of commands."""


@_constructors.primitive_rule
def _without_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read an optional value like the value itself: the help shows `INT` instead of `{None}|INT`."""
    kinds = typing.get_args(info.type)
    if type(None) not in kinds:
        return None
    value_type: Any = typing.Union[tuple(kind for kind in kinds if kind is not type(None))]  # noqa: UP007 -- made of a tuple
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(value_type, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )


class UsageError(ValueError):
    """The command line cannot be read."""


def parse(commands: Any, arguments: Sequence[str], *, prog: str, description: str = "") -> Any:
    """Read a command line.

    Args:
        commands: a union of commands, each a dataclass.
        arguments: the words after `prog`.
        prog: the words before, such as `lathe`.
        description: first lines of the help.

    Raises:
        UsageError: tyro rejects it; the message is tyro's box as one line.
        LatencyError: a word is empty or not UTF-8, a flag is given twice, or a number is out of range.
    """
    require_sound(arguments, repeatable=REPEATABLE)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _constructors:
            command = tyro.cli(
                commands,
                prog=prog,
                description=description,
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code == BAD_INPUT:
            raise UsageError(_one_line(said.getvalue())) from None
        raise
    require_ranges(command)
    return command


_RULE = re.compile(r"[\s│╰╯─-]*-{4,}[\s-]*|[\s│╰╯─]*")
"""A line of a frame without words; on consoles without box characters it consists of dashes, below a title on its own
line."""


def _one_line(box: str) -> str:
    """Return tyro's framed message as one line: its text without the frame, its title and its rules."""
    lines = [line.strip(" │") for line in box.splitlines() if line.strip() and not line.startswith("╭")]
    if len(lines) > 1 and lines[1].startswith("----"):
        lines = lines[1:]
    text = " ".join(" ".join(line for line in lines if not _RULE.fullmatch(line)).split())
    if unknown := re.search(
        r"Unrecognized[^:]* options: (.+?)(?= Arguments are| Perhaps you| Available sub| For full| Missing|$)", text
    ):
        return _unrecognized(unknown[1], text)
    if own := re.match(
        r"Error parsing __tyro\S+: (.*?)(?: For full helptext.*)?$", text
    ):  # raised by a struct about its fields
        return own[1]
    if wrong := re.match(
        r"Error parsing (\S+): (.*) Argument helptext: \S+ (\S+)", text
    ):  # tyro's message names Python types
        flag, why, kind = wrong.groups()
        value = re.search(r"from \['(.*?)'\]|: '(.*?)'", why)
        given = next(filter(None, value.groups()), "") if value else why
        return f"{flag} must be {kind}, found {given!r}"
    return text


def _unrecognized(words: str, text: str) -> str:
    """Return the message for unknown words.

    The known subcommands, or a similar flag and the help that lists the flags.
    """
    word = re.split(r"[,\s]", words)[0]
    known = re.search(r"Available subcommands: ((?:[\w-]+, )*[\w-]+)", text)
    if known and not word.startswith("-"):
        return f"{word!r} is unknown: choose one of {known[1]}"
    command = re.search(r"applied to (lathe[\w\s-]*)\)|(?:see|run:?|in) (lathe[\w\s-]*) --help", text)
    near = re.search(r"Perhaps you meant: (--\S+)", text)
    meant = f"did you mean {near[1]}? " if near and near[1] != word else ""
    helpful = next(filter(None, command.groups())) if command else "lathe"
    return f"{word!r} is not understood: {meant}see `{helpful} --help`"
