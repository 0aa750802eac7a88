"""Exponential moving average of a network's weights, evaluated and shipped instead of the last step's weights."""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn


@final
class WeightAverage:
    """average = d * average + (1 - d) * weights after every step, for parameters and running statistics.

    d is the decay, but at most (1 + n) / (10 + n) at the n-th update; otherwise, with a decay of 0.9999, the initial
    weights would still dominate after ten thousand steps. Other buffers, such as counters and masks, keep the values of
    the last step.

    Args:
        network: the network to average; the average starts from its current weights.
        decay: d, at least 0 and below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        assert 0 <= decay < 1, decay
        self._network, self._decay, self._updates = network, decay, 0
        self._average = {name: value.detach().clone() for name, value in self._floats()}

    def _floats(self) -> Iterator[tuple[str, Tensor]]:
        return (
            (name, value)
            for name, value in self._network.state_dict(keep_vars=True).items()
            if value.is_floating_point()
        )

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after a step."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, value in self._floats():
            self._average[name].lerp_(value, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Give the network the averaged weights within the context, then restore its own."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._floats():
            own = value.clone()
            value.copy_(self._average[name])
            self._average[name] = own

    @torch.no_grad()
    def finish(self) -> None:
        """Give the network the averaged weights permanently."""
        for name, value in self._floats():
            value.copy_(self._average[name])

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the state needed to resume."""
        return {**self._average, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Resume from a `state_dict`.

        Raises:
            KeyError: the state is from another network.
        """
        self._updates = int(state["updates"])
        for name, average in self._average.items():
            average.copy_(torch.as_tensor(state[name]))
