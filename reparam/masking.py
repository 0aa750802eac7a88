"""Attach masks to the inputs or outputs of a network's modules by hooks, without changing its code."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from reparam.structure import Arguments


@dataclass(frozen=True)
class MaskSite:
    """Where a mask applies."""

    module: str
    """qualified name of the module whose output, or input, is masked; "" is the network itself"""
    front: bool
    """whether the module's input is masked instead of its output"""
    dim: int
    """dimension of the value that holds the channels"""
    entries: tuple[int, ...]
    """index into the mask for each channel; -1 for an unmasked channel"""
    graph: str | None = None
    """name of the module that is replaced by its graph, because the value is between two operators of its code; None if
    the code stays"""

    def __str__(self) -> str:
        if self.graph is not None:
            return f"{self.module}, in the graph of {self.graph or 'the network'}"
        return f"in front of {self.module}" if self.front else self.module


@dataclass(frozen=True)
class _ChannelRun:
    """Adjacent channels whose entries of the mask are consecutive."""

    first: int
    """entry of the first channel; -1 if the channels are not masked"""
    last: int
    """one past the entry of the last channel"""
    each: int
    """number of adjacent channels per entry"""
    times: int = 1
    """number of times that the entries repeat"""

    @property
    def width(self) -> int:
        """Number of channels."""
        return (self.last - self.first) * self.each * self.times


def _channel_runs(entries: Sequence[int]) -> list[_ChannelRun]:
    """Group the entries of a site into runs."""
    runs: list[_ChannelRun] = []
    for first, group in itertools.groupby(entries):
        each = len([*group])
        before = runs[-1] if runs else None
        if before is not None and 0 <= before.last == first and before.each == each:
            runs[-1] = replace(before, last=first + 1)
        elif first < 0:
            runs.append(_ChannelRun(-1, 0, each))
        else:
            runs.append(_ChannelRun(first, first + 1, each))
    rows: list[_ChannelRun] = []
    for run in runs:
        if rows and run.first >= 0 and replace(rows[-1], times=1) == run:
            rows[-1] = replace(run, times=rows[-1].times + 1)
        else:
            rows.append(run)
    return rows


class Masked:
    """Module hook that masks the module's input or output.

    Args:
        masks: holds the mask.
        name: name of the mask in `masks`, where it may be replaced.
        site: where the mask applies.
        count: number of entries of the mask.
    """

    def __init__(self, masks: "Masks", name: str, site: MaskSite, count: int) -> None:
        self.masks, self.name, self.site, self.count = masks, name, site, count

    def __call__(self, _module: nn.Module, args: Arguments, output: object = None) -> object:
        """Mask the output, or the first argument."""
        return (self.masks(args[0], self), *args[1:]) if self.site.front else self.masks(output, self)

    @property
    def mask(self) -> nn.Module:
        """The current mask."""
        return self.masks[self.name]

    @cached_property
    def _runs(self) -> list[_ChannelRun]:
        return _channel_runs(self.site.entries)

    def apply(self, x: Tensor, mask: nn.Module) -> Tensor:
        """Return the value with its channels masked."""
        dim = self.site.dim
        y = x if dim == 1 else x.transpose(1, dim)
        parts = [y] if len(self._runs) == 1 else torch.split(y, [run.width for run in self._runs], 1)
        masked = [
            part if run.first < 0 else self._part(part, run, mask) for part, run in zip(parts, self._runs, strict=True)
        ]
        y = masked[0] if len(masked) == 1 else torch.cat(masked, 1)
        return y if dim == 1 else y.transpose(1, dim)

    def _part(self, x: Tensor, run: _ChannelRun, mask: nn.Module) -> Tensor:
        if run.times > 1:  # move the repeats into their own dimension
            rows = torch.unflatten(x, 1, (run.times, -1)).transpose(1, 2)
            return self._part(rows, replace(run, times=1), mask).transpose(1, 2).flatten(1, 2)
        x = x if run.each == 1 else torch.unflatten(x, 1, (-1, run.each))
        if (run.first, run.last) == (0, self.count):
            x = mask(x)
        else:
            padding = [0, 0] * (x.ndim - 2) + [run.first, self.count - run.last]
            x = mask(nn.functional.pad(x, padding))[:, run.first : run.last]
        return x if run.each == 1 else x.flatten(1, 2)


class Masks(nn.Module):
    """The masks of a network by name.

    An identity if called as a module, since `nn.Sequential` calls all of its children.
    """

    def __getitem__(self, name: str) -> nn.Module:
        mask = self._modules[name]  # torch.export misnames an attribute if modules are shared
        assert mask is not None
        return mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def forward(self, x: Tensor, masked: Masked | None = None) -> Tensor:
        """Apply a mask to a value; return the value unchanged if `masked` is None."""
        return x if masked is None else masked.apply(x, self[masked.name])


_MASK_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def attach_mask(module: nn.Module, masked: Masked) -> None:
    """Attach a mask to a module."""
    if masked.site.front:
        module.register_forward_pre_hook(masked)
    else:
        module.register_forward_hook(masked)


def attached_masks(module: nn.Module) -> list[Masked]:
    """Return the masks attached to a module."""
    return [hook for name in _MASK_HOOKS for hook in _hooks(module, name).values() if isinstance(hook, Masked)]


def detach_masks(module: nn.Module) -> list[Masked]:
    """Detach the masks from a module and return them."""
    masks = attached_masks(module)
    for name in _MASK_HOOKS:
        hooks = _hooks(module, name)
        for key in [key for key, hook in hooks.items() if isinstance(hook, Masked)]:
            del hooks[key]
    return masks


def _hooks(module: nn.Module, name: str) -> dict[int, object]:
    """Return the hooks of one kind, which torch keeps in a private attribute."""
    return getattr(module, name)
