"""Continuous relaxations of a choice among candidates; noise is passed in, so that tests can control it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "..."]


def gumbel(shape: Sequence[int], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Draw standard Gumbel noise on the CPU, from torch's global state if there is no generator."""
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    return (-(-uniform.clamp(1e-12, 1 - 1e-12).log()).log()).float()


def gumbel_softmax(logits: Logits, noise: Float[Tensor, "..."], tau: float) -> Float[Tensor, "..."]:
    """Return softmax((logits + noise) / tau) along the last dimension (Jang et al. 2016; PRUNET, Eq. 4).

    Args:
        logits: logits of the candidates.
        noise: noise from `gumbel`, or zeros.
        tau: temperature, above 0.
    """
    return ((logits + noise) / tau).softmax(-1)


def gumbel_subset(
    logits: Float[Tensor, " options"],
    noise: Float[Tensor, " options"],
    order: Float[Tensor, " options"],
    tau: float,
    count: int,
) -> tuple[Int[Tensor, " drawn"], Float[Tensor, " drawn"]]:
    """Draw candidates without replacement by their noisy probabilities, and return their weights (TAS, Eq. 3 and 4).

    The weights are the renormalised noisy probabilities of the drawn candidates: they carry the noise of the draw and
    the gradient.

    Args:
        logits: logits of the candidates.
        noise: noise from `gumbel`, o in Eq. 3.
        order: further noise from `gumbel`: the candidates with the largest sums of it and the log noisy probabilities
            are drawn, which is a multinomial draw without replacement.
        tau: temperature, above 0.
        count: number of candidates to draw, |I|.

    Returns:
        Indices of the drawn candidates, ascending, and their weights, which sum to 1.
    """
    noisy = (logits + noise) / tau
    drawn = (noisy.detach().log_softmax(-1) + order).topk(count).indices.sort().values
    return drawn, noisy[drawn].softmax(-1)
