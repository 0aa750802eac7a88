"""Named tensors on disk: safetensors, written whole, never pickled."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latency.errors import one_line
from latency.files import open_regular, raised_as, write_whole
from search.errors import SearchError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any device and layout; `metadata` says what they belong to."""
    portable = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(portable, metadata=dict(metadata)))


AGAIN = "run `lathe search` again, into a new directory"


def read_tensors(path: Path, *, mend: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Args:
        path: the file.
        mend: what helps where it cannot be read.

    Raises:
        SearchError: no such file, or a damaged one.
    """
    with raised_as(SearchError, mend), open_regular(path):
        pass  # the library opens whatever is there, and would wait for a pipe
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  safe_open is no mapping
    except (SafetensorError, OSError, UnicodeError, MemoryError, RuntimeError) as error:
        raise SearchError(f"{path} is not a safetensors file ({one_line(error)}): {mend}") from error
