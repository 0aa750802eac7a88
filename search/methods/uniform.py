"""Uniform widths: the same share of every group's channels."""

from torch import nn

from search.masks import Scores
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import UniformSettings


class Uniform(Pruning[UniformSettings]):
    """Of every group the same share goes, the channels of the smallest filters, before the search's epochs train what is left."""

    pruned_in = "search"

    def scores(self, network: nn.Module) -> list[Scores]:
        """Each channel's rank in its group."""
        return importance.uniform(network, self.problem.example, self.groups)
