import pytest
import torch
from torch import nn

from reparam import ChannelMask, channel_groups, insert_masks
from search.drop_path import drop_path, residual_branches


class Block(nn.Module):
    """Two convolutions beside an identity or a projection."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, c_out, 1), nn.BatchNorm2d(c_out)
        )
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        return torch.relu(self.shortcut(x) + self.body(x))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), Block(8, 8), Block(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


IMAGES = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def outputs(network: nn.Module, names: list[str]) -> list[torch.Tensor]:
    """What some modules hand on, in one pass over the images."""
    kept: list[torch.Tensor] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda *found: kept.append(found[2])) for name in names
    ]
    network(IMAGES)
    for handle in handles:
        handle.remove()
    return kept


def test_branches_are_the_longer_paths_to_an_addition(network):
    assert residual_branches(network, IMAGES) == ["1.body.4", "2.body.4"]
    assert residual_branches(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), IMAGES) == []


def test_a_masked_network_has_the_same_branches(network):
    example = torch.zeros(1, 3, 2, 2)
    groups = [group for group in channel_groups(network, example) if not group.why]
    masked = insert_masks(
        network, example, groups, lambda group: ChannelMask(torch.arange(group.channels) < group.channels - 1)
    )
    assert residual_branches(masked, IMAGES) == residual_branches(network, IMAGES)


def test_branches_are_dropped_for_each_image_with_the_probability_of_their_depth(network):
    branches = residual_branches(network, IMAGES)
    plain = outputs(network, branches)
    dropped = [0, 0]
    generator = torch.Generator().manual_seed(2)
    with drop_path(network, IMAGES, 0.5, generator):
        for _ in range(20):
            first, second = outputs(network, branches)
            for k, (found, p) in enumerate(((first, 0.25), (second, 0.5))):
                gone = (found == 0).all(dim=(1, 2, 3))
                dropped[k] += int(gone.sum())
                if k == 0:  # what feeds the second branch is another than without drops
                    torch.testing.assert_close(found[~gone], plain[k][~gone] / (1 - p))
    for count, p in zip(dropped, (0.25, 0.5), strict=True):
        drawn = 20 * len(IMAGES)
        assert abs(count / drawn - p) < 4 * (p * (1 - p) / drawn) ** 0.5  # four standard deviations
    assert all(torch.equal(one, other) for one, other in zip(outputs(network, branches), plain, strict=True))


def test_the_generator_alone_decides(network):
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 100)
        before = torch.get_rng_state()
        with drop_path(network, IMAGES, 0.5, torch.Generator().manual_seed(seed % 2)):
            found = network(IMAGES)
        assert torch.equal(torch.get_rng_state(), before)
        return found

    assert torch.equal(run(0), run(2))
    assert not torch.equal(run(0), run(1))


def test_shares_of_a_batch_are_treated_as_the_batch_is(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics are of a share

    def run(images: torch.Tensor, **share: int) -> torch.Tensor:
        with drop_path(network, IMAGES, 0.5, torch.Generator().manual_seed(0), **share):
            return network(images)

    whole = run(IMAGES)
    shares = [run(images, rank=rank, ranks=2) for rank, images in enumerate(IMAGES.chunk(2))]
    torch.testing.assert_close(torch.cat(shares), whole)


def test_evaluation_and_rate_0_draw_nothing(network):
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    with drop_path(network, IMAGES, 0.0, generator):
        network(IMAGES)
    with drop_path(network.eval(), IMAGES, 0.5, generator):
        network(IMAGES)
    assert torch.equal(generator.get_state(), state)
