"""Relaxations of a choice among candidates; the noise is passed in, so that a test can choose it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
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
