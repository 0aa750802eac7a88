"""The solver as a method, following HALP (Shen et al. 2022) and MDP (Sun et al. 2025).

Importances, then the best fit to the budget.

It chooses the widths within the budget with the highest sum of importances: a knapsack over the latency table, solved
to optimality by `search.widths`. Nothing is learned, so it is a baseline for learned methods.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reparam.typed_torch import to_list
from search import widths
from search.masks import Scores
from search.methods import importance
from search.methods.pruning import Pruning
from search.methods.settings import TableSettings
from search.spaces import Widths


class Table(Pruning[TableSettings]):
    """Keeps the most important channels within the budget; the search's epochs then train the remaining ones."""

    pruned_in = "search"

    def scores(self, network: nn.Module) -> list[Scores]:
        """Return the importance of each channel (HALP, Eq. 3, if by Taylor)."""
        settings, example = self.settings, self.problem.example
        match settings.score:
            case "magnitude":
                return importance.magnitude(network, example, self.groups)
            case "slimming":
                return [scale.detach() for scale in importance.scales(network, self.groups)]
            case "taylor":
                order = torch.Generator().manual_seed(settings.seed)
                batches = self.problem.task.training_batches(settings.batch, order)
                count = max(1, settings.score_images // settings.batch)
                return importance.taylor(
                    network, example, self.groups, self.problem.task.loss, itertools.islice(batches, count)
                )

    def values(self, scores: Sequence[Tensor], kept: Widths) -> list[list[float]]:
        """Return the value of each width of each group: the sum of its highest importances (HALP, Eq. 5)."""
        return widths.importance([to_list(score) for score in scores], self.choices)
