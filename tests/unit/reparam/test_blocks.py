import pytest
import torch
from torch import nn

from reparam import ChannelMask, RepVGGBlock, compare
from reparam.blocks import fold_norm
from reparam.errors import ReparamError


def test_a_mask_zeroes_channels_of_images_and_vectors():
    mask = ChannelMask(torch.tensor([True, False, True]))
    assert mask(torch.ones(2, 3, 4, 4)).sum((0, 2, 3)).tolist() == [32, 0, 32]
    assert mask(torch.ones(2, 3)).tolist() == [[1, 0, 1], [1, 0, 1]]
    assert "2 of 3" in repr(mask)


def test_a_mask_is_saved_and_never_trained():
    mask = ChannelMask(torch.tensor([True, False]))
    assert list(mask.state_dict()) == ["keep"]
    assert not list(mask.parameters())
    assert mask.double().keep.dtype == torch.bool


@pytest.mark.parametrize(("c_in", "c_out", "stride", "has_identity"), [(4, 4, 1, True), (4, 4, 2, False), (4, 6, 1, False)])
def test_the_identity_branch_exists_where_shapes_allow(c_in, c_out, stride, has_identity):
    assert (RepVGGBlock(c_in, c_out, stride=stride).identity is not None) == has_identity


def test_the_output_is_the_masked_sum_of_all_branches():
    block = RepVGGBlock(4, 4, mask=ChannelMask(torch.tensor([True, True, False, True]))).eval()
    x = torch.randn(2, 4, 5, 5)
    total = block.dense(x) + block.point(x) + block.identity(x)
    total[:, 2] = 0
    assert torch.equal(block(x), total.relu())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_deployed_form_computes_the_same(groups, stride, randomized):
    mask = ChannelMask(torch.tensor([True, False, True, True]))
    block = randomized(RepVGGBlock(4, 4, stride=stride, groups=groups, act=nn.SiLU, mask=mask)).double()
    deployed = block.deployed()
    assert compare(block, deployed, torch.randn(2, 4, 9, 9)).within(1e-12)
    assert isinstance(deployed.act, nn.SiLU)
    assert deployed.mask is not block.mask
    assert sum(isinstance(module, nn.Conv2d) for module in deployed.modules()) == 1


def test_a_norm_without_statistics_cannot_be_folded():
    with pytest.raises(ReparamError, match="without running statistics"):
        fold_norm(torch.randn(2, 2, 1, 1), None, nn.BatchNorm2d(2, track_running_stats=False))
