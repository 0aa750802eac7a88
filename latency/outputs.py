"""Where a command may write: what a person owns is not overwritten unasked, and what cannot be written is refused before any work."""

import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latency.errors import LatencyError
from latency.files import beside

GENERATOR = "Lathe"
"""What pages and pictures name as what made them."""

_HEAD_BYTES = 4096
_SEALED = ("manifest.json", b'"schema": "bundle/')
"""The file of a shipped bundle that lists all its files, and what is near its beginning: one more file and `lathe verify` fails."""


@dataclass(frozen=True)
class Artefact:
    """A kind of file that is written here.

    Attributes:
        name: with its article, such as `a latency table`.
        made: whether a file that begins with these bytes is one.
    """

    name: str
    made: Callable[[bytes], bool]


def _has_index(head: bytes) -> bool:
    """Whether a zip's first member is the index of a block bundle."""
    if not head.startswith(b"PK\x03\x04") or head[30:40] != b"index.json":
        return False
    try:
        return b'"blocks/' in zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[40:], 256)
    except zlib.error:
        return False


def _names(head: bytes, begin: bytes, maker: str) -> bool:
    """Whether a file is of a format, by its first bytes, and says what made it."""
    return head.startswith(begin) and maker.encode() in head


TABLE = Artefact("a latency table", lambda head: head.startswith(b'{"schema":"latency-table/'))
BLOCKS = Artefact("a block bundle", _has_index)
PAGE = Artefact("a report", lambda head: _names(head, b"<!doctype html>", f'<meta name="generator" content="{GENERATOR}">'))
PICTURE = Artefact(
    "a picture of a table",
    lambda head: _names(head, b"\x89PNG", f"Software\0{GENERATOR}") or _names(head, b"<?xml ", f"<dc:title>{GENERATOR}</dc:title>"),
)
NEW = Artefact("", lambda head: False)
"""What says nothing of what made it, or must not be there before."""


def require_file(path: str | os.PathLike[str], kind: Artefact, *, flag: str, force: bool | None = None, parents: bool = False) -> None:
    """Check that a file may be written: nothing is there, an empty file, or one of the same kind that was written here.

    Args:
        path: the file.
        kind: what it becomes.
        flag: that gave it, for the message.
        force: whether a regular file of any other content may be replaced; None where its owner cannot ask for that.
        parents: whether directories that are missing will be made.

    Raises:
        LatencyError: something else is there, it cannot be written, or it would be inside a shipped bundle.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise LatencyError(f"{flag} {path} is a directory: name a file")
    found = _lstat(path, flag)
    if found is not None:
        if stat.S_ISLNK(found.st_mode):
            raise LatencyError(f"{flag} {path} is a link: name the file that it leads to, or another")
        if not stat.S_ISREG(found.st_mode):
            what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise LatencyError(f"{flag} {path} is {what}: name a file")
        if found.st_size and not force and not kind.made(_head(path, flag)):
            what = f"is not {kind.name} of {GENERATOR}" if kind.name else "would be lost"
            raise LatencyError(f"{flag} {path} exists and {what}: choose another name" + ", or replace it by --force" * (force is not None))
    _require_place(path, flag, parents)


def require_directory(path: str | os.PathLike[str], *, flag: str = "--out") -> None:
    """Check that a directory can be made or written: what may be in it is for others to judge.

    Raises:
        LatencyError: something else than a directory is there, it cannot be made, or it would be inside a shipped bundle.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise LatencyError(f"{flag} {path}: name a new directory")
    found = _lstat(path, flag)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise LatencyError(f"{flag} {path} exists and is not a directory: choose another name")
    _require_place(path, flag, parents=True)


def begun(path: str | os.PathLike[str]) -> bool:
    """Whether a latency table is there that the command which writes it goes on with."""
    try:
        return TABLE.made(_head(Path(path), "--out"))
    except LatencyError:
        return False


def _require_place(path: Path, flag: str, parents: bool) -> None:
    """Check that a new file or directory can be put where `path` lies, by trying it."""
    parent = path.parent
    while parents and not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise LatencyError(f"{flag} {path}: {parent} is not a directory: make it, or choose another place")
    for directory in (resolved := parent.resolve(), *resolved.parents):
        if _is_sealed(directory):
            raise LatencyError(f"{flag} {path} is inside the bundle {directory}, which would not verify any more: choose another place")
    trial = beside(path) if parent == path.parent else parent / beside(path).name
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
    except (FileNotFoundError, NotADirectoryError):  # of the latter `_require_place` says which
        return None
    except OSError as error:
        raise LatencyError(f"{flag} {path} cannot be written: {error.strerror}") from error


def _head(path: Path, flag: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise LatencyError(f"{flag} {path} cannot be read: {error.strerror}") from error
