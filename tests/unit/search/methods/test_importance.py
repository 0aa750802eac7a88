import pytest
import torch

from reparam import RepVGGBlock
from search.methods import importance


@pytest.fixture
def block():
    torch.manual_seed(0)
    return RepVGGBlock(4, 6)


def test_top_takes_the_highest_and_of_equals_the_lower_index():
    assert importance.top(torch.tensor([0.1, 0.3, 0.3, -1.0, 0.3]), 2).tolist() == [False, True, True, False, False]


def test_magnitude_is_of_the_convolution_that_ships(block):
    """A channel without weights in any branch is worth nothing, though its norms scale it."""
    for branch in (block.dense, block.point):
        branch.conv.weight.data[2] = 0
    (scores,) = importance.magnitude([block])
    assert scores[2] == 0
    assert scores.argmin() == 2
    assert scores.mean().item() == pytest.approx(1)


def test_uniform_ranks_by_magnitude_and_gives_every_layer_the_same_scores(block):
    wide = RepVGGBlock(4, 12)
    scores = importance.uniform([block, wide])
    assert scores[0].sort().values.tolist() == pytest.approx([k / 6 for k in range(1, 7)])
    assert [int((score > 0.5).sum()) for score in scores] == [3, 6]
    assert scores[0].argmax() == importance.magnitude([block])[0].argmax()


def test_scales_add_up_over_the_branches(block):
    square = RepVGGBlock(6, 6)
    square.identity.weight.data[1] = -3.0
    assert importance.scales([block])[0].tolist() == pytest.approx([2.0] * 6)
    assert importance.scales([square])[0].tolist() == pytest.approx([3.0, 5.0, 3.0, 3.0, 3.0, 3.0])
