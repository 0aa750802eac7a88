import torch

from ..conftest import make_method


def test_scores_are_ranks_that_every_group_shares(tiny, table, stripes, budget_us):
    method = make_method("uniform", tiny, table, stripes, budget_us)
    for group, score in zip(method.groups, method.scores(tiny.module()), strict=True):
        ranks = (1 - score.sort(descending=True).values) * group.channels
        assert torch.allclose(ranks, torch.arange(group.channels, dtype=torch.float32), atol=1e-4)
