"""Magnitude pruning (Li et al. 2017): remove the channels of small filters."""

from torch import nn

from search.masks import Scores
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import MagnitudeSettings


class Magnitude(Pruning[MagnitudeSettings]):
    """Removes the channels with the smallest L1 norm by a common threshold.

    The search's epochs then train the remaining ones.
    """

    pruned_in = "search"

    def scores(self, network: nn.Module) -> list[Scores]:
        """Return the L1 norm of each channel's filters."""
        return importance.magnitude(network, self.problem.example, self.groups)
