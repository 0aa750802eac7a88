"""The weights of a trainable network on disk."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from latency.errors import one_line
from search.errors import SearchError
from search.tensors import AGAIN, read_tensors, write_tensors


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers; `metadata` says what they were made from."""
    write_tensors(path, network.state_dict(), metadata)


def load_weights(network: nn.Module, path: Path, metadata: Mapping[str, str], *, mend: str = AGAIN) -> None:
    """Fill a network with the weights of a file.

    Args:
        network: that they are of.
        path: the file.
        metadata: what the file must say of itself.
        mend: what helps where it cannot be read.

    Raises:
        SearchError: no such file, other metadata than `metadata`, weights of another network, or one that is not a finite number.
    """
    tensors, found = read_tensors(path, mend=mend)
    for key, wanted in metadata.items():
        if found.get(key) != wanted:
            raise SearchError(
                f"{path} has {key} {found.get(key)}, wanted {wanted}: the file belongs to another network; run `lathe search` again"
            )
    if broken := next((name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None):
        raise SearchError(f"{path}: {broken} has a value that is not a finite number: {mend}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise SearchError(f"{path} does not fit the network: {one_line(error, limit=200)}: give the weights of this space") from error
