import dataclasses
import typing

import pytest

from latency import LatencyError
from lathe import cli
from lathe.flags import ranges, require_ranges


def commands(hint=cli.Command):
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [command for part in typing.get_args(hint) for command in commands(part)]


NUMBERS = [
    (command, field.name, hint)
    for command in commands()
    for field in dataclasses.fields(command)
    for hint in [typing.get_type_hints(command, include_extras=True)[field.name]]
    if {int, float}
    & {*typing.get_args(typing.get_type_hints(command)[field.name]), typing.get_type_hints(command)[field.name]}
]


def test_there_are_numbers():
    assert {name for _, name, _ in NUMBERS} >= {
        "classes",
        "seed",
        "threads",
        "budget_ms",
        "drift_limit",
        "workspace_mib",
    }


@pytest.mark.parametrize(
    ("command", "name", "hint"), NUMBERS, ids=lambda value: getattr(value, "__name__", str(value))[:20]
)
def test_every_number_has_a_range_and_keeps_to_it(command, name, hint):
    (limits,) = ranges(hint)
    given = {field.name: None for field in dataclasses.fields(command)}
    for value in (limits.low, limits.high, None):
        require_ranges(command(**given | {name: value}))
    for value in (limits.low - 1, limits.high * 2 + 1, float("nan"), float("inf"), -float("inf"), 2**5000):
        with pytest.raises(LatencyError, match=rf"^--{name.replace('_', '-')} must be from .* to .*, found .{{1,40}}$"):
            require_ranges(command(**given | {name: value}))


def test_a_flag_of_several_values_has_one():
    with pytest.raises(LatencyError, match="--compute-capability needs a value"):
        cli.parse(["export", "run", "--out", "b", "--compute-capability"])
    with pytest.raises(LatencyError, match="^--table needs a value$"):
        cli.parse(["predict", "repvgg-mini", "--table"])
    with pytest.raises(LatencyError, match="^name the tables$"):
        cli.parse(["table", "diff"])
