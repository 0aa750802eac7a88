"""The modules of a network as torch stores them, with types: also under the second names of shared modules."""

from collections.abc import Iterator
from typing import NamedTuple, cast

from torch import Tensor, nn


class Child(NamedTuple):
    """A module under one of its names."""

    path: str
    """qualified name"""
    parent: nn.Module
    name: str
    """name in the parent"""
    module: nn.Module

    def replace(self, module: nn.Module) -> None:
        """Put another module in its place."""
        self.parent._modules[self.name] = module  # pyright: ignore[reportPrivateUsage]

    def remove(self) -> None:
        """Remove it from its parent."""
        del self.parent._modules[self.name]  # pyright: ignore[reportPrivateUsage]


def child_modules(model: nn.Module) -> Iterator[Child]:
    """Yield the children of every module, each under all of its names; the caller may replace or remove them."""
    for path, parent in list(named_modules(model)):
        for name, module in list(parent._modules.items()):  # pyright: ignore[reportPrivateUsage]
            if module is not None:
                yield Child(f"{path}.{name}".lstrip("."), parent, name, module)


def named_modules(model: nn.Module, *, all_names: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its qualified name, parents first; "" is the network itself.

    Args:
        model: the network.
        all_names: whether a shared module is yielded under each of its names.
    """
    return cast("Iterator[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=not all_names))


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module itself, each under all of its names."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)
