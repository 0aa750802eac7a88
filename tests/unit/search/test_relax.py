import torch

from search.relax import gumbel, gumbel_softmax


def test_gumbel_noise_has_its_mean_and_variance_and_repeats_itself():
    first, again = (gumbel((100_000,), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert abs(first.mean() - 0.5772) < 0.02
    assert abs(first.var() - torch.pi**2 / 6) < 0.04


def test_the_relaxation_is_equation_4():
    logits, noise = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.5, -0.25])
    wanted = torch.exp((logits + noise) / 0.7)
    torch.testing.assert_close(gumbel_softmax(logits, noise, 0.7), wanted / wanted.sum())


def test_the_most_likely_candidate_is_drawn_as_often_as_the_softmax_says():
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = gumbel_softmax(logits, gumbel((20_000, 3), torch.Generator().manual_seed(0)), 1.0).argmax(1)
    torch.testing.assert_close(torch.bincount(drawn) / 20_000, logits.softmax(0), atol=0.015, rtol=0)
