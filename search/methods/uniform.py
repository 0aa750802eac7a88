"""Uniform pruning: keep the same share of every group's channels."""

from torch import nn

from search.masks import Scores
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import UniformSettings


class Uniform(Pruning[UniformSettings]):
    """Removes the same share of every group, the channels of the smallest filters.

    The search's epochs then train the remaining ones.
    """

    pruned_in = "search"

    def scores(self, network: nn.Module) -> list[Scores]:
        """Return each channel's rank in its group."""
        return importance.uniform(network, self.problem.example, self.groups)
