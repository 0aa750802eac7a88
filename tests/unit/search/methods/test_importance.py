import pytest
import torch
from torch import nn

from reparam import RepVGGBlock, insert_masks
from search import SearchError
from search.masks import prunable_groups
from search.methods import importance

X = torch.zeros(1, 4, 8, 8)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        RepVGGBlock(4, 6), RepVGGBlock(6, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    ).eval()


def test_magnitude_is_of_the_convolution_that_ships(network):
    """A channel without weights in any branch is worth nothing, though its norms scale it."""
    for branch in (network[0].dense, network[0].point):
        branch.conv.weight.data[2] = 0
    first, second = importance.magnitude(network, X, prunable_groups(network, X))
    assert first[2] == 0
    assert first.argmin() == 2
    assert [score.mean().item() for score in (first, second)] == pytest.approx([1, 1])
    assert second.tolist() == pytest.approx(
        (norms := network[1].deployed().conv.weight.abs().sum(dim=(1, 2, 3))).div(norms.mean()).tolist(), rel=1e-5
    )


def test_magnitude_of_layers_that_are_added_up_is_their_sum():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    two = Two()
    two.a.weight.data = torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 4, 1, 1).clone()
    two.b.weight.data = torch.tensor([0.5, 0.5])[:, None, None, None].expand(2, 4, 1, 1).clone()
    (scores,) = importance.magnitude(two, X, prunable_groups(two, X))
    assert scores.tolist() == pytest.approx([1.5, 0.5])


def test_uniform_ranks_by_magnitude_and_gives_every_group_the_same_scores(network):
    groups = prunable_groups(network, X)
    scores = importance.uniform(network, X, groups)
    for ranks, norms in zip(scores, importance.magnitude(network, X, groups), strict=True):
        assert ranks.sort().values.tolist() == pytest.approx([k / 6 for k in range(1, 7)])
        assert ranks.argsort().tolist() == norms.argsort().tolist()


def test_scales_add_up_over_the_branches(network):
    network[1].identity.weight.data[1] = -3.0
    first, second = importance.scales(network, prunable_groups(network, X))
    assert first.tolist() == pytest.approx([2.0] * 6)
    assert second.tolist() == pytest.approx([3.0, 5.0, 3.0, 3.0, 3.0, 3.0])
    first.sum().backward()
    assert network[0].dense.norm.weight.grad.tolist() == [1.0] * 6


def test_norms_right_behind_a_convolution_are_found_and_a_group_without_any_is_refused():
    plain = nn.Sequential(
        nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    groups = prunable_groups(plain, X)
    assert importance.norms(plain, groups[:1]) == [[plain[1]]]
    with pytest.raises(
        SearchError, match=r"^slimming ranks channels by the norm behind them: group 3 has none; exclude it$"
    ):
        importance.norms(plain, groups)


def test_taylor_is_what_the_loss_changes_by_to_first_order(network):
    """By finite differences: every channel in turn is made a little smaller."""
    x, y = torch.rand(8, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1] * 4)
    groups = prunable_groups(network, X)
    found = importance.taylor(network, X, groups, nn.functional.cross_entropy, [(x, y), (x[:4], y[:4])])

    class Smaller(nn.Module):
        def __init__(self, channel: int) -> None:
            super().__init__()
            self.channel = channel

        def forward(self, x):
            factor = torch.ones(6)
            factor[self.channel] -= 1e-3
            return x * factor[:, None, None]

    network = network.double()
    for group, scores in zip(groups, found, strict=True):
        for channel in range(6):
            changed = insert_masks(
                network, X.double(), [group], lambda _, channel=channel: Smaller(channel).double()
            ).eval()
            changes = [
                abs(
                    nn.functional.cross_entropy(changed(x.double()), y)
                    - nn.functional.cross_entropy(network(x.double()), y)
                )
                / 1e-3
                for x, y in ((x, y), (x[:4], y[:4]))
            ]
            assert scores[channel].item() == pytest.approx(sum(changes).item() / 2, rel=2e-2, abs=1e-5)
