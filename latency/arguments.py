"""Checks of any command line: no text other than UTF-8, no empty words, no repeated flags."""

from collections.abc import Sequence
from itertools import takewhile

from latency.errors import LatencyError


def require_sound(arguments: Sequence[str], *, repeatable: Sequence[str] = ()) -> None:
    """Require sound words on a command line.

    Args:
        arguments: words after the program's name.
        repeatable: flags that may be given more than once, such as `--shape`.

    Raises:
        LatencyError: a word is empty or not UTF-8, or a flag is given twice; names it.
    """
    for number, word in enumerate(arguments, 1):
        if not word.strip():
            raise LatencyError(f"word {number} of the command line is empty: is a variable not set?")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise LatencyError(f"{word!r} is not UTF-8: names are kept in files of JSON, rename it") from None
    seen = set[str]()
    for flag in map(_flag, takewhile(lambda word: word != "--", arguments)):
        if flag in seen and flag not in repeatable:
            raise LatencyError(f"{flag} is given twice: give it once")
        seen |= {flag} - {""}


def _flag(word: str) -> str:
    """Return the flag that a word is or begins with; "" for a value. `--no-json` counts as the flag `--json`."""
    if not word.startswith("--"):
        return ""
    name = word.partition("=")[0].replace("_", "-")
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name
