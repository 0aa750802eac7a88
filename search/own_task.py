"""Tasks of one's own: `FILE.py:FUNCTION`, a function without arguments that makes a `search.task.Task`."""

from latency.files import sha256
from search.errors import SearchError
from search.spaces import own
from search.task import Task


def load(name: str, file_sha256: str = "") -> Task:
    """The task that a function makes, with the name and the hash of its file.

    Args:
        name: `FILE.py:FUNCTION`. What lies beside the file can be imported by it.
        file_sha256: what the hash has to be; "" for any.

    Raises:
        SearchError: no such file or function, it fails, makes something else, or the file has another hash.
    """
    if not own.is_own(name):
        raise SearchError(f"--task {name!r} is not FILE.py:FUNCTION, a function without arguments that makes a search.Task")
    found = sha256(own.file_of(name))
    if file_sha256 not in ("", found):
        raise SearchError(
            f"{own.file_of(name)} was changed after the search: its sha256 was {file_sha256[:16]}, found {found[:16]}; put it back"
        )
    task = own.call(name)
    if not isinstance(task, Task):
        raise SearchError(f"{name} returns {type(task).__name__}, wanted a search.Task")
    task.name, task.file_sha256 = own.resolved(name), found
    return task
