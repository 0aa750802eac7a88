"""Which channels of a network exist: one mask for each group of channels.

A group is what must go together (`reparam.channel_groups`): the layers that a residual connection adds up share one mask.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from reparam import ChannelGroup, ChannelMask, channel_groups, fold_norms, insert_masks
from search.errors import SearchError

Scores = Float[Tensor, " channels"]
"""A score for every channel of a group; the highest ones stay."""
Keep = Bool[Tensor, " channels"]


def top(scores: Scores, count: int) -> Keep:
    """The `count` channels with the highest scores; the lower index first where equal."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.detach().argsort(descending=True, stable=True)[:count]] = True
    return keep


def first(groups: Sequence[tuple[str, int]], widths: Sequence[int]) -> dict[str, Keep]:
    """Of each group, by name, the first channels: for networks of which the widths count alone, or whose weights bring their masks.

    Args:
        groups: name and full width of each.
        widths: channels that stay of each.
    """
    return {name: torch.arange(full) < width for (name, full), width in zip(groups, widths, strict=True)}


def prunable_groups(model: nn.Module, example_input: Tensor, exclude: Sequence[str] = ()) -> tuple[ChannelGroup, ...]:
    """The groups of a network that can be pruned, and may be.

    Those with masks for which a module would run by its graph are left out: it would train without what its code does in training alone.

    Args:
        model: the network, that torch.export can read.
        example_input: a batch of the shape that it is for.
        exclude: names of groups, of layers or of modules that contain them, or patterns such as `layer4.*`: what these make stays whole.

    Raises:
        SearchError: nothing can be pruned, or `exclude` names what is not there.
        ReparamError: the network cannot be read or run; the node is named.
    """
    found = channel_groups(model, example_input)
    groups = tuple(group for group in found if not group.why and all(site.graph is None for site in group.sites))
    if not groups:
        raise SearchError(f"no channels of the network can be pruned: {'; '.join(f'{group.name}: {group.why}' for group in found)}")
    left = groups
    exclude = (exclude,) if isinstance(exclude, str) else exclude  # a string is a sequence of strings, too
    for pattern in exclude:
        hit = {group.name for group in groups if any(_names(pattern, producer) for producer in (group.name, *group.producers))}
        if not hit:
            raise SearchError(f"exclude {pattern!r} is not a group of the network: there are {', '.join(group.name for group in groups)}")
        left = tuple(group for group in left if group.name not in hit)
    if not left:
        raise SearchError(f"exclude {', '.join(exclude)} leaves nothing to prune of {', '.join(group.name for group in groups)}")
    return left


def _names(pattern: str, module: str) -> bool:
    return fnmatch.fnmatchcase(module, pattern) or module.startswith(f"{pattern}.")


def mask(model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], kept: Mapping[str, Keep]) -> nn.Module:
    """A copy of a network with a `ChannelMask` behind each group that loses channels.

    Args:
        model: the network; it stays as it was.
        example_input: a batch of the shape that it is for.
        groups: of the network.
        kept: of each of these groups, by name, the channels that stay.
    """
    return insert_masks(model, example_input, groups, lambda group: _mask(kept[group.name]))


def narrowed(model: nn.Module, input_shape: Sequence[int], widths: Mapping[str, tuple[int, int]], *, tied: bool = False) -> nn.Module:
    """A copy of a network with a `ChannelMask` behind some groups, of which the first channels stay.

    Args:
        model: the network; it stays as it was.
        input_shape: channels, height and width of its images.
        widths: of each group by name, how many channels stay, and of how many.
        tied: groups that are not there are of one width with one that is, whose layers they are added to.

    Raises:
        SearchError: the network has no such group.
    """
    example = torch.zeros(1, *input_shape)
    groups = {group.name: group for group in prunable_groups(model, example)}
    for name, (width, full) in widths.items():
        if width < full and (not tied if name not in groups else groups[name].channels != full):
            raise SearchError(f"the network has no group {name} of {full} channels: give the module that was searched")
    kept = {name: torch.arange(full) < width for name, (width, full) in widths.items()}
    return mask(model, example, [group for group in groups.values() if group.name in kept], kept)


def freeze(network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Keep]) -> None:
    """Put masks in the place of what `insert_masks` put into a network; changes the network in place.

    Args:
        network: with a module behind each group.
        groups: that these were made for.
        kept: of each group, by name, the channels that stay.
    """
    masks = network.get_submodule("masks")
    for (name, _), group in zip(list(masks.named_children()), groups, strict=True):
        masks.add_module(name, _mask(kept[group.name]))


def hold_gone(optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> tuple[RemovableHandle, ...]:
    """Keep the weights of channels that are gone, and their momentum, as they are until the channels come back.

    A mask cuts the gradient of all that makes a channel and of all that reads it to exactly 0, but weight decay and momentum would still
    move them. So after every step each slice of a weight, along its outputs or its inputs, that got no gradient is put back. (That of a
    channel whose activation is 0 all over a batch is, too.)

    Args:
        optimizer: of the weights; every slot that has the shape of its weight is kept too.
        weights: those concerned, without the indicators.

    Returns:
        Handles of the optimizer's hooks, which end it.
    """
    weights = list(weights)
    before: dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]] = {}

    def remember(*_: Any) -> None:
        before.clear()
        for weight in weights:
            if weight.grad is not None and (gone := _without_gradient(weight.grad)).any():
                before[weight] = (gone, {name: value.detach().clone() for name, value in _values(optimizer, weight).items()})

    def put_back(*_: Any) -> None:
        for weight, (gone, values) in before.items():
            for name, value in _values(optimizer, weight).items():
                value.data.copy_(torch.where(gone, values.get(name, torch.zeros_like(value)), value.detach()))

    return optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(put_back)


def _values(optimizer: Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """A weight and the slots of its optimizer that have its shape."""
    slots = optimizer.state.get(weight, {})
    return {"": weight} | {name: slot for name, slot in slots.items() if isinstance(slot, Tensor) and slot.shape == weight.shape}


def _without_gradient(gradient: Tensor) -> Tensor:
    """Which entries belong to an output or an input whose gradient is 0 in all entries."""
    still = gradient == 0
    gone = torch.zeros_like(still)
    for axis in range(min(2, still.ndim)):
        others = [other for other in range(still.ndim) if other != axis]
        gone |= still.all(dim=others, keepdim=True) if others else still
    return gone


def _mask(keep: Keep) -> nn.Module:
    return nn.Identity() if keep.all() else ChannelMask(keep)


def fused_form(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, dict[str, ChannelGroup]]:
    """A network as it ships, unpruned, and its groups there by their names in the network as it is trained.

    Raises:
        SearchError: fusing changes which channels go together.
        ReparamError: the network cannot be read or fused.
    """
    fused = fold_norms(model, example_input)
    trained, shipped = (channel_groups(network, example_input) for network in (model, fused))
    if [group.channels for group in trained] != [group.channels for group in shipped]:
        raise SearchError(
            f"fusing the network changes its groups of channels: {len(trained)} in its trained form, {len(shipped)} in its fused form; "
            "search the fused network"
        )
    return fused, {group.name: twin for group, twin in zip(trained, shipped, strict=True)}
