"""Magnitude pruning (Li et al. 2017): channels of small filters go."""

from torch import nn

from search.masks import Scores
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import MagnitudeSettings


class Magnitude(Pruning[MagnitudeSettings]):
    """Channels whose filters have the smallest L1 norm go, by one threshold, before the search's epochs train what is left."""

    pruned_in = "search"

    def scores(self, network: nn.Module) -> list[Scores]:
        """The L1 norm of each channel's filters."""
        return importance.magnitude(network, self.problem.example, self.groups)
