"""Masks over the channels of a network, one per channel group.

A group holds channels that must be removed together (`reparam.channel_groups`): layers added by a residual connection
share one mask.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from reparam import ChannelGroup, ChannelMask, channel_groups, fold_norms, insert_masks
from search.errors import SearchError

Scores = Float[Tensor, " channels"]
"""Scores of a group's channels; those with the highest scores are kept."""
Keep = Bool[Tensor, " channels"]


def top_channels(scores: Scores, count: int) -> Keep:
    """Keep the `count` channels with the highest scores; of equal ones those with lower indices."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.detach().argsort(descending=True, stable=True)[:count]] = True
    return keep


def first_channels(groups: Sequence[tuple[str, int]], widths: Sequence[int]) -> dict[str, Keep]:
    """Keep the first channels of each group, if only widths matter or the masks will be loaded with the weights.

    Args:
        groups: name and full width of each group.
        widths: number of kept channels of each group.
    """
    return {name: torch.arange(full) < width for (name, full), width in zip(groups, widths, strict=True)}


def prunable_groups(model: nn.Module, example_input: Tensor, exclude: Sequence[str] = ()) -> tuple[ChannelGroup, ...]:
    """Return the prunable groups of a network, except excluded ones.

    Groups whose masks would replace a module by its graph are left out, because the graph lacks behaviour specific to
    training.

    Args:
        model: a network that torch.export can read.
        example_input: a batch of the network's input shape.
        exclude: groups to leave unpruned: names of groups, layers or modules that contain them, or patterns such as
            `layer4.*`.

    Raises:
        SearchError: nothing can be pruned, or `exclude` matches nothing.
        ReparamError: the network cannot be read or run; the message names the node.
    """
    all_groups = channel_groups(model, example_input)
    groups = tuple(group for group in all_groups if not group.why and all(site.graph is None for site in group.sites))
    if not groups:
        raise SearchError(
            "no channels of the network can be pruned: "
            f"{'; '.join(f'{group.name}: {group.why}' for group in all_groups)}"
        )
    remaining = groups
    exclude = (exclude,) if isinstance(exclude, str) else exclude  # a string is a sequence of strings, too
    for pattern in exclude:
        excluded = {
            group.name
            for group in groups
            if any(_matches(pattern, producer) for producer in (group.name, *group.producers))
        }
        if not excluded:
            raise SearchError(
                f"exclude {pattern!r} is not a group of the network: there are "
                f"{', '.join(group.name for group in groups)}"
            )
        remaining = tuple(group for group in remaining if group.name not in excluded)
    if not remaining:
        raise SearchError(
            f"exclude {', '.join(exclude)} leaves nothing to prune of {', '.join(group.name for group in groups)}"
        )
    return remaining


def _matches(pattern: str, module: str) -> bool:
    return fnmatch.fnmatchcase(module, pattern) or module.startswith(f"{pattern}.")


def mask(
    model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup], kept: Mapping[str, Keep]
) -> nn.Module:
    """Return a copy of a network with a `ChannelMask` for each group that loses channels.

    Args:
        model: the network; it stays unchanged.
        example_input: a batch of the network's input shape.
        groups: groups of the network.
        kept: kept channels of each of these groups, by name.
    """
    return insert_masks(model, example_input, groups, lambda group: _mask(kept[group.name]))


def narrowed(
    model: nn.Module, input_shape: Sequence[int], widths: Mapping[str, tuple[int, int]], *, tied: bool = False
) -> nn.Module:
    """Return a copy of a network with a `ChannelMask` for some groups that keeps their first channels.

    Args:
        model: the network; it stays unchanged.
        input_shape: channels, height and width of its images.
        widths: kept and full width of each group, by name.
        tied: whether missing groups are allowed, as being part of another group whose layers they are added to.

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
    """Replace the mask modules of a network by fixed masks, in place.

    Args:
        network: a network made by `insert_masks`.
        groups: the groups that it was made for.
        kept: kept channels of each group, by name.
    """
    masks = network.get_submodule("masks")
    for (name, _), group in zip(list(masks.named_children()), groups, strict=True):
        masks.add_module(name, _mask(kept[group.name]))


def hold_gone(optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> tuple[RemovableHandle, ...]:
    """Freeze the weights and momentum of masked channels until the channels return.

    A mask makes the gradient of every weight that produces or reads a channel exactly 0, but weight decay and momentum
    would still change these weights. Therefore, after every step, each slice of a weight along its outputs or inputs
    that got no gradient is restored. This includes channels whose activation is 0 over a whole batch.

    Args:
        optimizer: optimizer of the weights; slots with the shape of their weight are restored, too.
        weights: the weights to freeze, without the indicators.

    Returns:
        Handles of the optimizer's hooks; remove them to stop freezing.
    """
    weights = list(weights)
    before: dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]] = {}

    def remember(*_: object) -> None:
        before.clear()
        for weight in weights:
            if weight.grad is not None and (gone := _without_gradient(weight.grad)).any():
                before[weight] = (
                    gone,
                    {name: value.detach().clone() for name, value in _values(optimizer, weight).items()},
                )

    def put_back(*_: object) -> None:
        for weight, (gone, values) in before.items():
            for name, value in _values(optimizer, weight).items():
                value.data.copy_(torch.where(gone, values.get(name, torch.zeros_like(value)), value.detach()))

    return optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(put_back)


def _values(optimizer: Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """Return a weight and its optimizer slots of the same shape."""
    slots = optimizer.state.get(weight, {})
    return {"": weight} | {
        name: slot for name, slot in slots.items() if isinstance(slot, Tensor) and slot.shape == weight.shape
    }


def _without_gradient(gradient: Tensor) -> Tensor:
    """Return which entries belong to an output or input whose gradient is 0 everywhere."""
    zero = gradient == 0
    gone = torch.zeros_like(zero)
    for axis in range(min(2, zero.ndim)):
        others = [other for other in range(zero.ndim) if other != axis]
        gone |= zero.all(dim=others, keepdim=True) if others else zero
    return gone


def _mask(keep: Keep) -> nn.Module:
    return nn.Identity() if keep.all() else ChannelMask(keep)


def fused_form(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, dict[str, ChannelGroup]]:
    """Return the fused network, unpruned, and its groups by their names in the training form.

    Raises:
        SearchError: fusing changes the channel groups.
        ReparamError: the network cannot be read or fused.
    """
    fused = fold_norms(model, example_input)
    trained, shipped = (channel_groups(network, example_input) for network in (model, fused))
    if [group.channels for group in trained] != [group.channels for group in shipped]:
        raise SearchError(
            f"fusing the network changes its groups of channels: {len(trained)} in its trained form, {len(shipped)} in "
            "its fused form; "
            "search the fused network"
        )
    return fused, {group.name: twin for group, twin in zip(trained, shipped, strict=True)}
