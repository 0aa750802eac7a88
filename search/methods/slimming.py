"""Network slimming (Liu et al. 2017): push the scales of norms to 0, then remove channels of small scales."""

import torch
from torch import Tensor, nn

from search.masks import Scores
from search.method import Problem
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import SlimmingSettings


class Slimming(Pruning[SlimmingSettings]):
    """Trains all channels with an L1 penalty on the scales of their norms, then removes channels of small scales."""

    pruned_in = "finetune"

    def __init__(self, settings: SlimmingSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        importance.norms(self.space.module(), self.groups)  # raises before the pretraining

    def scores(self, network: nn.Module) -> list[Scores]:
        """Return the scales of each channel's norms."""
        return [scale.detach() for scale in importance.scales(network, self.groups)]

    def penalty(self, network: nn.Module) -> Tensor:
        """Return the weighted L1 norm of the scales (Eq. 1)."""
        return self.settings.slimming * torch.cat(importance.scales(network, self.groups)).sum()
