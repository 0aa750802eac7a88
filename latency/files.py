"""Atomic writing of files, and reading of untrusted ones."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Generator
from io import BufferedReader
from pathlib import Path

from latency.errors import FileError

MAX_FILE_BYTES = 16 * 2**30
"""Maximum size of a file that is read, unless its format has a smaller limit."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def partial_path(path: Path) -> Path:
    """Return the path of a file while it is being written."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path in the same directory; at the end, its file is synced to disk and renamed to `path`.

    Readers of `path` see the old or the new file, even after a crash. If the block fails, the old file stays.

    Raises:
        FileError: `path` exists and is not a regular file, such as a device, which the new file would replace.
        OSError: the file cannot be written; names `path`.
    """
    path = Path(path)
    if not path.name:
        raise FileError(path, "is a directory, where a file is expected")
    if path.exists():
        require_regular(path, path.stat())
    partial = partial_path(path)
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def require_regular(path: str | os.PathLike[str], status: os.stat_result, limit: int = MAX_FILE_BYTES) -> None:
    """Require a regular file of at most `limit` bytes.

    Args:
        path: path of the file, for the message.
        status: status of the file.
        limit: maximum size in bytes.

    Raises:
        FileError: the file is not regular or larger than `limit`.
    """
    if not stat.S_ISREG(status.st_mode):
        raise FileError(
            path, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a regular file')}, where a file is expected"
        )
    if status.st_size > limit:
        raise FileError(path, _too_large(status.st_size, limit))


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], *, limit: int = MAX_FILE_BYTES) -> Generator[BufferedReader]:
    """Open a regular file for reading. Never blocks, as opening a named pipe or reading a device would.

    Args:
        path: path of the file; symbolic links are followed.
        limit: maximum size in bytes.

    Raises:
        FileError: the file is missing, not regular, not readable or larger than `limit`; names it.
    """
    with _open(path, limit) as file:
        yield file


def _open(path: str | os.PathLike[str], limit: int) -> BufferedReader:
    try:
        # Opening a device may have side effects, so the kind is checked before; and again after, in case the file was
        # replaced.
        require_regular(path, Path(path).stat(), limit)
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise FileError(repr(os.fspath(path)), "is not the name of a file: it has a null byte") from error
    try:
        require_regular(path, os.fstat(file.fileno()), limit)
    except FileError:
        file.close()
        raise
    return file


def _unreadable(path: str | os.PathLike[str], error: OSError) -> FileError:
    if error.errno == errno.ENOENT:
        return FileError(path, "does not exist")
    return FileError(path, f"cannot be read: {error.strerror or error}")


def read_bytes(path: str | os.PathLike[str], *, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file; see `open_regular`.

    Raises:
        FileError: the file cannot be opened, is larger than `limit` bytes, or does not fit into memory; names it.
    """
    try:
        with open_regular(path, limit=limit) as file:
            data = file.read(os.fstat(file.fileno()).st_size)
            while len(data) <= limit and (more := file.read(2**20)):  # a growing file, or one in /proc, whose size is 0
                data += more
    except MemoryError as error:
        raise FileError(path, "does not fit into memory") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > limit:
        raise FileError(path, _too_large(len(data), limit))
    return data


def sha256(path: str | os.PathLike[str], *, limit: int = MAX_FILE_BYTES) -> str:
    """Return the SHA-256 hash of a regular file in hexadecimal.

    Raises:
        FileError: the file cannot be read, or is larger than `limit` bytes; see `open_regular`.
    """
    try:
        with open_regular(path, limit=limit) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


@contextlib.contextmanager
def raised_as(kind: type[ValueError], fix: str) -> Generator[None]:
    """Re-raise a FileError as another error, with the fix appended: `TABLE does not exist: measure it with ...`."""
    try:
        yield
    except FileError as error:
        raise kind(f"{error}: {fix}") from error


def human_bytes(size: int) -> str:
    """Format a size in bytes, such as `1.5 GiB`."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:,.4g} {unit}"
    return f"{size} bytes"


def _too_large(size: int, limit: int) -> str:
    return f"has {human_bytes(size)}, and at most {human_bytes(limit)} are read"
