"""Save and load the weights of a network."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from latency.errors import one_line
from search.errors import SearchError
from search.tensors import RERUN, read_tensors, write_tensors


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers; `metadata` records what they belong to."""
    write_tensors(path, network.state_dict(), metadata)


def load_weights(network: nn.Module, path: Path, metadata: Mapping[str, str], *, mend: str = RERUN) -> None:
    """Load the weights of a file into a network.

    Args:
        network: the network.
        path: the file.
        metadata: metadata that the file must have.
        mend: ends the message of an error: how to fix it.

    Raises:
        SearchError: there is no such file, its metadata differs, the weights are from another network, or one of them
            is not finite.
    """
    tensors, recorded = read_tensors(path, mend=mend)
    for key, wanted in metadata.items():
        if recorded.get(key) != wanted:
            raise SearchError(
                f"{path} has {key} {recorded.get(key)}, wanted {wanted}: the file belongs to another network; run "
                "`lathe search` again"
            )
    if broken := next(
        (name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None
    ):
        raise SearchError(f"{path}: {broken} has a value that is not a finite number: {mend}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise SearchError(
            f"{path} does not fit the network: {one_line(error, limit=200)}: give the weights of this space"
        ) from error
