"""Errors that `latency` shows to users. Each says in one line what was found, what is allowed and how to fix it."""

import importlib
from types import ModuleType

from latency.distribution import install_command


class LatencyError(ValueError):
    """Base of every error that `latency` shows to a user."""


class FileError(LatencyError):
    """A file cannot be read.

    It is missing, is not a regular file, is too large, or does not hold what its format asks for.

    The caller adds the fix, see `latency.files.raised_as`.

    Attributes:
        problem: what is wrong, without the file's name, such as `does not exist`.
    """

    def __init__(self, where: object, problem: str) -> None:
        super().__init__(escaped(f"{where} {problem}"))
        self.problem = problem


class TableError(LatencyError):
    """A latency table cannot be read or written: names the line and the field."""


class FingerprintMismatch(LatencyError):
    """Two things that must come from the same device, runtime or settings differ.

    Attributes:
        field: the first field that differs, dotted if nested, such as `device.threads`.
        found: its actual value.
        wanted: its expected value.
    """

    def __init__(self, what: str, field: str, found: object, wanted: object, fix: str) -> None:
        super().__init__(f"{what} has {field} {found!r}, wanted {wanted!r}: {fix}")
        self.field, self.found, self.wanted = field, found, wanted


class CoverageError(LatencyError):
    """A table does not cover a block, neither by a row nor by interpolation.

    Attributes:
        reason: what is not covered and why, without the command that measures it.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(f"{reason}: {fix}" if fix else reason)
        self.reason = reason


class MissingExtra(LatencyError):
    """An optional package is not installed: names it and the command that installs it."""


class DeviceUnavailable(LatencyError):
    """This machine has no device, driver or library that a backend needs."""


class BuildFailed(LatencyError):
    """A backend cannot compile a network: the compiler's message in one line."""


class RunFailed(LatencyError):
    """A compiled network cannot be run: the runtime's message in one line."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: the name to import, such as `tensorrt_rtx`.
        extra: the extra of this project that installs it; "" if the base install does.

    Raises:
        MissingExtra: the module itself is absent. A missing import inside it is raised unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtra(f"this needs the package '{module}': {install_command(extra)}") from error


def escaped(text: str) -> str:
    """Escape line breaks and other non-printable characters in a text, such as a file name."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: object, limit: int = 400) -> str:
    """Return another tool's message as one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
