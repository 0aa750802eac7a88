import math

import torch

from search.relax import gumbel, gumbel_softmax, gumbel_subset


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


def test_drawn_candidates_have_the_weights_of_equation_4_with_the_noise_of_the_draw():
    logits, noise = torch.tensor([0.2, -0.4, 1.0, 0.1]), torch.tensor([0.3, 1.2, -0.5, 0.0])
    drawn, weights = gumbel_subset(logits, noise, torch.tensor([0.0, 9.0, 0.0, 8.0]), 0.5, 2)
    assert drawn.tolist() == [1, 3]
    log_p = logits.log_softmax(0)
    wanted = [math.exp((log_p[j] + noise[j]) / 0.5) for j in (1, 3)]
    torch.testing.assert_close(weights, torch.tensor(wanted) / sum(wanted))


def test_candidates_are_drawn_without_replacement_by_their_noisy_probabilities():
    """As `torch.multinomial` draws them: the second by what is left of the probabilities."""
    logits, noise, draw = (
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0.5, -0.3, -0.6]),
        torch.Generator().manual_seed(0),
    )
    p = ((logits + noise) / 2).softmax(0)
    counts = dict.fromkeys([(0, 1), (0, 2), (1, 2)], 0)
    for _ in range(4_000):
        counts[tuple(gumbel_subset(logits, noise, gumbel((3,), draw), 2.0, 2)[0].tolist())] += 1
    for (a, b), count in counts.items():
        wanted = float(p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]))
        assert abs(count / 4_000 - wanted) < 0.03


def test_one_drawn_candidate_has_the_weight_1_and_no_gradient():
    logits = torch.randn(5, requires_grad=True)
    _, weights = gumbel_subset(logits, gumbel((5,)), gumbel((5,)), 1.0, 1)
    (3.0 * weights).sum().backward()
    assert weights.tolist() == [1.0]
    assert logits.grad.tolist() == [0.0] * 5
