"""Relaxations of a choice among candidates; the noise is passed in, so that a test can choose it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "..."]


def gumbel(shape: Sequence[int], generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Noise of the standard Gumbel distribution, on the CPU; of torch's global state without a generator."""
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    return (-(-uniform.clamp(1e-12, 1 - 1e-12).log()).log()).float()


def gumbel_softmax(logits: Logits, noise: Float[Tensor, "..."], tau: float) -> Float[Tensor, "..."]:
    """softmax((logits + noise) / tau) along the last dimension (Jang et al. 2016; PRUNET, Eq. 4).

    Args:
        logits: of the candidates.
        noise: of `gumbel`; zeros for none.
        tau: temperature, above 0.
    """
    return ((logits + noise) / tau).softmax(-1)


def gumbel_subset(
    logits: Float[Tensor, " options"], noise: Float[Tensor, " options"], order: Float[Tensor, " options"], tau: float, count: int
) -> tuple[Int[Tensor, " drawn"], Float[Tensor, " drawn"]]:
    """Some candidates drawn without replacement by their noisy probabilities, and their weights (TAS, Eq. 3 and 4).

    The weights are the noisy probabilities of the drawn candidates, renormalised: they carry the same noise as the draw, and the gradient.

    Args:
        logits: of the candidates.
        noise: of `gumbel`, o in Eq. 3.
        order: of `gumbel`, too: the highest sums of it and the logarithms of the noisy probabilities are drawn, which is a multinomial draw
            without replacement.
        tau: temperature, above 0.
        count: number of candidates to draw, |I|; at most all.

    Returns:
        Indices of the drawn ones, ascending, and the weight of each; the weights sum to 1.
    """
    noisy = (logits + noise) / tau
    drawn = (noisy.detach().log_softmax(-1) + order).topk(count).indices.sort().values
    return drawn, noisy[drawn].softmax(-1)
