"""A chain or a single network as a trainable module, and its weights on disk."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from latency.errors import one_line
from reparam import RepVGGBlock
from search import blocks
from search.blocks import pooled_linear
from search.errors import SearchError
from search.space import Chain, Fixed
from search.tensors import read_tensors, write_tensors


def build_network(space: Chain) -> nn.Sequential:
    """The unpruned network of a chain in its training form: one RepVGG block a layer, then the head.

    Its parameters are drawn from torch's global random state.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    channels = space.input_shape[0]
    for layer in space.layers:
        modules[layer.name] = RepVGGBlock(channels, layer.width, stride=layer.stride)
        channels = layer.width
    modules["head"] = pooled_linear(channels, space.classes)
    return nn.Sequential(modules)


def build_named(space: Fixed) -> nn.Sequential:
    """A single network in its training form, one module a block; `workloads.deployed_form` of its blocks is what ships.

    Its parameters are drawn from torch's global random state. `reparam.fuse` of it has the weights of the form that ships.
    """
    make = blocks.trained_as_repvgg if space.trained_as == "repvgg" else blocks.trained
    return nn.Sequential(*map(make, space.full_network()))


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write parameters and buffers; `metadata` says what they were made from."""
    write_tensors(path, network.state_dict(), metadata)


def load_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Fill a network with the weights of a file.

    Raises:
        SearchError: no such file, other metadata than `metadata`, weights of another network, or one that is not a finite number.
    """
    tensors, found = read_tensors(path)
    for key, wanted in metadata.items():
        if found.get(key) != wanted:
            raise SearchError(
                f"{path} has {key} {found.get(key)}, wanted {wanted}: the file belongs to another network; run `lathe search` again"
            )
    if broken := next((name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None):
        raise SearchError(f"{path}: {broken} has a value that is not a finite number: run `lathe search` again, into a new directory")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise SearchError(f"{path} does not fit the network: {one_line(error, limit=200)}: give the weights of this space") from error
