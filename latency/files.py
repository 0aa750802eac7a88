"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def beside(path: Path) -> Path:
    """Where a file is while it is being written."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside `path` to write a file to; at the end it is on the disk and takes the place of `path`.

    Whoever reads `path` finds the old file or the new one, also after a crash. Where the block fails, the old one stays.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path = Path(path)
    partial = beside(path)
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


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file by `whole`."""
    with whole(path) as partial:
        partial.write_bytes(content)
