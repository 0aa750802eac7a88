"""Read and write named tensors as safetensors files, atomically and without pickle."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latency.errors import one_line
from latency.files import open_regular, raised_as, write_atomically
from search.errors import SearchError

Tree: TypeAlias = Any
"""A tensor, or a tree of tensors: dicts, lists and tuples as a network or a data set returns them."""


class _TensorFile(Protocol):
    """An open safetensors file, whose library has no types."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def metadata(self) -> dict[str, str] | None: ...


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any device and layout; `metadata` says what they belong to."""
    portable = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(portable, metadata=dict(metadata)))


RERUN = "run `lathe search` again, into a new directory"


def read_tensors(path: Path, *, mend: str = RERUN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a file.

    Args:
        path: the file.
        mend: ends the message of an error: how to fix it.

    Raises:
        SearchError: the file is missing or damaged.
    """
    with raised_as(SearchError, mend), open_regular(path):
        pass  # the library would open any kind of file and block on a pipe
    try:
        with cast("AbstractContextManager[_TensorFile]", safe_open(path, framework="pt")) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  safe_open is not a mapping
    except (SafetensorError, OSError, UnicodeError, MemoryError, RuntimeError) as error:
        raise SearchError(f"{path} is not a safetensors file ({one_line(error)}): {mend}") from error
