"""Checks of output paths, made before any work.

Users' files are not overwritten unless asked, and paths that cannot be written are refused.
"""

import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latency.errors import LatencyError
from latency.files import partial_path

GENERATOR = "Lathe"
"""Name of the producer in pages and pictures."""

_HEAD_BYTES = 4096
_SEALED = ("manifest.json", b'"schema": "bundle/')
"""File of a shipped bundle that lists its files, and text near its start. `lathe verify` fails after a file is
added."""


@dataclass(frozen=True)
class Artefact:
    """A kind of file that Lathe writes.

    Attributes:
        name: name with its article, such as `a latency table`.
        made: whether a file that begins with the given bytes is of this kind.
    """

    name: str
    made: Callable[[bytes], bool]


def _has_index(head: bytes) -> bool:
    """Return whether a zip's first member is the index of a block bundle."""
    if not head.startswith(b"PK\x03\x04") or head[30:40] != b"index.json":
        return False
    try:
        return b'"blocks/' in zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[40:], 256)
    except zlib.error:
        return False


def _is_made_by(head: bytes, begin: bytes, maker: str) -> bool:
    """Return whether a file's first bytes are of a format and name its producer."""
    return head.startswith(begin) and maker.encode() in head


TABLE = Artefact("a latency table", lambda head: head.startswith(b'{"schema":"latency-table/'))
BLOCKS = Artefact("a block bundle", _has_index)
PAGE = Artefact(
    "a report", lambda head: _is_made_by(head, b"<!doctype html>", f'<meta name="generator" content="{GENERATOR}">')
)
PICTURE = Artefact(
    "a picture of a table",
    lambda head: (
        _is_made_by(head, b"\x89PNG", f"Software\0{GENERATOR}")
        or _is_made_by(head, b"<?xml ", f"<dc:title>{GENERATOR}</dc:title>")
    ),
)
NEW = Artefact("", lambda head: False)
"""What says nothing of what made it, or must not be there before."""


def require_file(
    path: str | os.PathLike[str], kind: Artefact, *, flag: str, force: bool | None = None, parents: bool = False
) -> None:
    """Require that a file may be written.

    The path is free, or holds an empty file or one of the same kind that Lathe wrote.

    Args:
        path: the file to write.
        kind: kind of file to write.
        flag: flag that gave the path, for the message.
        force: whether a regular file with any other content may be replaced; None if the command has no such flag.
        parents: whether missing directories will be created.

    Raises:
        LatencyError: the path holds something else, cannot be written, or is inside a shipped bundle.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise LatencyError(f"{flag} {path} is a directory: name a file")
    status = _lstat(path, flag)
    if status is not None:
        if stat.S_ISLNK(status.st_mode):
            raise LatencyError(f"{flag} {path} is a link: name the file that it leads to, or another")
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise LatencyError(f"{flag} {path} is {what}: name a file")
        if status.st_size and not force and not kind.made(_head(path, flag)):
            what = f"is not {kind.name} of {GENERATOR}" if kind.name else "would be lost"
            raise LatencyError(
                f"{flag} {path} exists and {what}: choose another name"
                + ", or replace it by --force" * (force is not None)
            )
    _require_place(path, flag, parents)


def require_directory(path: str | os.PathLike[str], *, flag: str = "--out") -> None:
    """Require that a directory can be created or written; its contents are not checked.

    Raises:
        LatencyError: the path is not a directory, cannot be created, or is inside a shipped bundle.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise LatencyError(f"{flag} {path}: name a new directory")
    status = _lstat(path, flag)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise LatencyError(f"{flag} {path} exists and is not a directory: choose another name")
    _require_place(path, flag, parents=True)


def begun(path: str | os.PathLike[str]) -> bool:
    """Return whether the path holds a latency table that the command would resume."""
    try:
        return TABLE.made(_head(Path(path), "--out"))
    except LatencyError:
        return False


def _require_place(path: Path, flag: str, parents: bool) -> None:
    """Require that a new file or directory can be created next to `path`, by trying it."""
    parent = path.parent
    while parents and not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise LatencyError(f"{flag} {path}: {parent} is not a directory: make it, or choose another place")
    for directory in (resolved := parent.resolve(), *resolved.parents):
        if _is_sealed(directory):
            raise LatencyError(
                f"{flag} {path} is inside the bundle {directory}, which would not verify any more: choose another place"
            )
    trial = partial_path(path) if parent == path.parent else parent / partial_path(path).name
    try:
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        trial.unlink()
    except OSError as error:
        raise LatencyError(f"{flag} {path} cannot be written: {error.strerror}") from error


def _is_sealed(directory: Path) -> bool:
    name, begin = _SEALED
    manifest = directory / name
    return manifest.is_file() and begin in _head(manifest, name)


def _lstat(path: Path, flag: str) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # for the latter, `_require_place` says which
        return None
    except OSError as error:
        raise LatencyError(f"{flag} {path} cannot be written: {error.strerror}") from error


def _head(path: Path, flag: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise LatencyError(f"{flag} {path} cannot be read: {error.strerror}") from error
