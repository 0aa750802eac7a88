"""The solver as a method, in the manner of HALP (Shen et al. 2022) and MDP (Sun et al. 2025): importances, then the best fit to the budget.

Of all widths within the budget those are chosen whose channels have the highest sum of importances: a knapsack over the latency table,
solved to the optimum by `search.widths`. Nothing of it is learned, so it is what a learned method has to beat.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search import widths
from search.masks import Scores
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import TableSettings
from search.spaces import Widths


class Table(Pruning[TableSettings]):
    """The most important channels within the budget stay, chosen at once before the search's epochs train what is left."""

    pruned_in = "search"

    def scores(self, network: nn.Module) -> list[Scores]:
        """The importance of each channel (HALP, Eq. 3, where it is by Taylor)."""
        settings, example = self.settings, self.problem.example
        match settings.score:
            case "magnitude":
                return importance.magnitude(network, example, self.groups)
            case "slimming":
                return [scale.detach() for scale in importance.scales(network, self.groups)]
            case "taylor":
                order = torch.Generator().manual_seed(settings.seed)
                batches = self.problem.task.training_batches(settings.batch, order)
                first = max(1, settings.score_images // settings.batch)
                return importance.taylor(network, example, self.groups, self.problem.task.loss, itertools.islice(batches, first))

    def values(self, scores: Sequence[Tensor], kept: Widths) -> list[list[float]]:
        """What each width of each group is worth: the sum of its highest importances (HALP, Eq. 5)."""
        return widths.importance([score.tolist() for score in scores], self.choices)
