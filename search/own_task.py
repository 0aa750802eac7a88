"""User-defined tasks: `FILE.py:FUNCTION`, a function without arguments that returns a `search.task.Task`."""

from latency.files import sha256
from search.errors import SearchError
from search.spaces import own
from search.task import Task


def load(name: str, file_sha256: str = "") -> Task:
    """Load a user-defined task, with the name and hash of its file.

    Args:
        name: `FILE.py:FUNCTION`; the file can import modules from its directory.
        file_sha256: required hash of the file; "" allows any.

    Raises:
        SearchError: there is no such file or function, it fails or does not return a task, or the file has another
            hash.
    """
    if not own.is_own(name):
        raise SearchError(
            f"--task {name!r} is not FILE.py:FUNCTION, a function without arguments that returns a search.Task"
        )
    actual_sha256 = sha256(own.file_of(name))
    if file_sha256 not in ("", actual_sha256):
        raise SearchError(
            f"{own.file_of(name)} was changed after the search: its sha256 was {file_sha256[:16]}, found "
            f"{actual_sha256[:16]}; restore it"
        )
    task = own.call(name)
    if not isinstance(task, Task):
        raise SearchError(f"{name} returns {type(task).__name__}, wanted a search.Task")
    task.name, task.file_sha256 = own.resolved(name), actual_sha256
    return task
