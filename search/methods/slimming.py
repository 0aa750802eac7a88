"""Network slimming (Liu et al. 2017): the scales of norms are pushed to 0, then channels of small scales go."""

import torch
from torch import Tensor, nn

from search.masks import Scores
from search.method import Problem
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import SlimmingSettings


class Slimming(Pruning[SlimmingSettings]):
    """The search trains all channels with an L1 penalty on the scales of their norms; channels of small scales go behind it."""

    pruned_in = "finetune"

    def __init__(self, settings: SlimmingSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        importance.norms(self.space.module(), self.groups)  # refused now rather than after the pretraining

    def scores(self, network: nn.Module) -> list[Scores]:
        """The scales of each channel's norms."""
        return [scale.detach() for scale in importance.scales(network, self.groups)]

    def penalty(self, network: nn.Module) -> Tensor:
        """The weighted L1 norm of the scales (Eq. 1)."""
        return self.settings.slimming * torch.cat(importance.scales(network, self.groups)).sum()
