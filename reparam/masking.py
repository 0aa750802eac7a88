"""Masks behind, or in front of, the modules of a network that stays what it is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """Where a mask stands."""

    module: str
    """qualified name of the module whose output, or input, is masked; "" is the network itself"""
    front: bool
    """whether it is the module's input"""
    dim: int
    """which dimension of the value holds the channels"""
    entries: tuple[int, ...]
    """of each channel the entry of the mask; -1 for one that is not masked"""
    graph: str | None = None
    """name of the module that runs by its graph for it, as its own code has the value between two operators; None where code stays"""

    def __str__(self) -> str:
        if self.graph is not None:
            return f"{self.module}, in the graph of {self.graph or 'the network'}"
        return f"in front of {self.module}" if self.front else self.module


@dataclass(frozen=True)
class _Run:
    """Channels side by side that have entries of a mask in order."""

    first: int
    """entry of the first channel; -1 where none is masked"""
    last: int
    """entry behind that of the last one"""
    each: int
    """channels of an entry, one beside the other"""
    times: int = 1
    """how often the entries are there, one row behind the other"""

    @property
    def width(self) -> int:
        """Number of channels."""
        return (self.last - self.first) * self.each * self.times


def _runs(entries: Sequence[int]) -> list[_Run]:
    runs: list[_Run] = []
    for first, group in itertools.groupby(entries):
        each = len([*group])
        before = runs[-1] if runs else None
        if before is not None and 0 <= before.last == first and before.each == each:
            runs[-1] = replace(before, last=first + 1)
        elif first < 0:
            runs.append(_Run(-1, 0, each))
        else:
            runs.append(_Run(first, first + 1, each))
    rows: list[_Run] = []
    for run in runs:
        if rows and run.first >= 0 and replace(rows[-1], times=1) == run:
            rows[-1] = replace(run, times=rows[-1].times + 1)
        else:
            rows.append(run)
    return rows


class Masked:
    """Hook of a module that masks what it takes or returns.

    Args:
        masks: holds the mask.
        name: of the mask there; another one may take its place.
        site: where it stands.
        count: entries of the mask.
    """

    def __init__(self, masks: "Masks", name: str, site: Site, count: int) -> None:
        self.masks, self.name, self.site, self.count = masks, name, site, count

    def __call__(self, _module: nn.Module, args: Any, output: Any = None) -> Any:
        """Behind the module, or in front of it."""
        return (self.masks(args[0], self), *args[1:]) if self.site.front else self.masks(output, self)

    @property
    def mask(self) -> nn.Module:
        """The mask that stands there now."""
        mask = self.masks._modules[self.name]
        assert mask is not None
        return mask

    @cached_property
    def _runs(self) -> list[_Run]:
        return _runs(self.site.entries)

    def apply(self, x: Tensor, mask: nn.Module) -> Tensor:
        """The value with its channels masked."""
        dim = self.site.dim
        y = x if dim == 1 else x.transpose(1, dim)
        parts = [y] if len(self._runs) == 1 else y.split([run.width for run in self._runs], 1)
        made = [part if run.first < 0 else self._part(part, run, mask) for part, run in zip(parts, self._runs, strict=True)]
        y = made[0] if len(made) == 1 else torch.cat(made, 1)
        return y if dim == 1 else y.transpose(1, dim)

    def _part(self, x: Tensor, run: _Run, mask: nn.Module) -> Tensor:
        if run.times > 1:  # rows become a dimension of their own
            rows = x.unflatten(1, (run.times, -1)).transpose(1, 2)
            return self._part(rows, replace(run, times=1), mask).transpose(1, 2).flatten(1, 2)
        x = x if run.each == 1 else x.unflatten(1, (-1, run.each))
        if (run.first, run.last) == (0, self.count):
            x = mask(x)
        else:
            around = [0, 0] * (x.ndim - 2) + [run.first, self.count - run.last]
            x = mask(nn.functional.pad(x, around))[:, run.first : run.last]
        return x if run.each == 1 else x.flatten(1, 2)


class Masks(nn.Module):
    """Holds the masks of a network by name; hands on what it is called with, as a network may call all of its children in a row."""

    def forward(self, x: Any, masked: Masked | None = None) -> Any:
        """What a mask makes of a value; nothing without one."""
        if masked is None:
            return x
        mask = self._modules[masked.name]  # as an attribute torch.export would name it wrongly where modules are shared
        assert mask is not None
        return masked.apply(x, mask)


def place(module: nn.Module, masked: Masked) -> None:
    """Let a mask stand at a module."""
    if masked.site.front:
        module.register_forward_pre_hook(masked)
    else:
        module.register_forward_hook(masked)


def placed(module: nn.Module) -> list[Masked]:
    """The masks that stand at a module."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [hook for hook in hooks if isinstance(hook, Masked)]


def lift(module: nn.Module) -> list[Masked]:
    """Take the masks from a module."""
    found = placed(module)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, Masked)]:
            del hooks[key]
    return found
