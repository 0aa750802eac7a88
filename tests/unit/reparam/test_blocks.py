import pytest
import torch
from torch import nn

from reparam import (
    ACBlock,
    ChannelMask,
    ConvBlock,
    DiverseBranchBlock,
    LightBlock,
    MobileOneBlock,
    PlainBlock,
    RepVGGBlock,
    compare,
)
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


@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "has_identity"), [(4, 4, 1, True), (4, 4, 2, False), (4, 6, 1, False)]
)
def test_the_identity_branch_exists_where_shapes_allow(c_in, c_out, stride, has_identity):
    assert (RepVGGBlock(c_in, c_out, stride=stride).identity is not None) == has_identity


def test_the_output_is_the_masked_sum_of_all_branches():
    block = RepVGGBlock(4, 4, mask=ChannelMask(torch.tensor([True, True, False, True]))).eval()
    x = torch.randn(2, 4, 5, 5)
    total = block.dense(x) + block.point(x) + block.identity(x)
    total[:, 2] = 0
    assert torch.equal(block(x), total.relu())


BRANCHED = [RepVGGBlock, MobileOneBlock, ACBlock, DiverseBranchBlock, PlainBlock]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("c_out", "groups", "stride"), [(4, 1, 1), (4, 4, 1), (4, 2, 2), (8, 2, 1)])
@pytest.mark.parametrize("make", BRANCHED)
def test_the_deployed_form_computes_the_same_with_one_convolution(make, c_out, groups, stride, kernel, randomized):
    mask = ChannelMask(torch.arange(c_out) != 1)
    block = randomized(make(4, c_out, kernel=kernel, stride=stride, groups=groups, act=nn.SiLU, mask=mask)).double()
    deployed = block.deployed()
    x = torch.randn(2, 4, 9, 8).double()
    assert compare(block, deployed, x).within(1e-12)
    assert not deployed(x)[:, 1].any()
    assert isinstance(deployed, ConvBlock)
    assert isinstance(deployed.act, nn.SiLU)
    assert deployed.mask is not block.mask
    assert deployed.conv.weight.shape == (c_out, 4 // groups, kernel, kernel)


def test_the_deployed_form_draws_no_random_numbers():
    block = RepVGGBlock(4, 4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    block.deployed()
    assert torch.equal(torch.rand(3), expected)


def test_mobileone_has_the_branches_that_shapes_allow():
    depthwise = MobileOneBlock(6, 6, branches=3, groups=6)
    assert (len(depthwise.branches), depthwise.scale is None, depthwise.identity is None) == (3, False, False)
    pointwise = MobileOneBlock(6, 8, branches=1, kernel=1)
    assert (len(pointwise.branches), pointwise.scale, pointwise.identity) == (1, None, None)


def test_acnet_is_a_square_a_flat_and_an_upright_kernel():
    block = ACBlock(2, 3, kernel=5)
    assert [part.conv.kernel_size for part in (block.square, block.flat, block.upright)] == [(5, 5), (1, 5), (5, 1)]


def test_the_plain_block_adds_one_to_its_kernel(randomized):
    block = randomized(PlainBlock(3, 3)).double()
    without, bias = fold_norm(block.dense.conv.weight, None, block.dense.norm)
    weight, same = block.merged()
    assert torch.equal(same, bias)
    torch.testing.assert_close(weight[:, :, 1, 1], without[:, :, 1, 1] + torch.eye(3).double())
    assert PlainBlock(3, 4).identity is None
    assert PlainBlock(3, 3, stride=2).identity is None


def test_a_diverse_branch_trains_through_every_branch():
    block = DiverseBranchBlock(4, 4)
    block(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (6, 1), (4, 2)])
def test_a_light_block_is_two_convolutions_each_skipped_by_itself(c_out, stride, randomized):
    mask = ChannelMask(torch.arange(c_out) > 0)
    block = randomized(LightBlock(4, c_out, stride=stride, mask=mask)).double()
    x = torch.randn(2, 4, 7, 7).double()
    hidden = block.depthwise.dense(x)
    hidden = (hidden + x if stride == 1 else hidden).relu()
    out = block.pointwise.dense(hidden)
    out = mask(out + hidden if c_out == 4 else out).relu()
    torch.testing.assert_close(block(x), out)
    deployed = block.deployed()
    assert compare(block, deployed, x).within(1e-12)
    assert [name for name, part in deployed.named_modules() if isinstance(part, nn.Conv2d)] == [
        "depthwise.conv",
        "pointwise.conv",
    ]


@pytest.mark.parametrize("make", BRANCHED)
@pytest.mark.parametrize(
    ("c_in", "c_out", "options"), [(4, 4, {"kernel": 2}), (4, 6, {"groups": 4}), (6, 4, {"groups": 4})]
)
def test_impossible_blocks_are_refused(make, c_in, c_out, options):
    with pytest.raises(
        ReparamError, match="the kernel must be odd and the channels divisible by the number of groups"
    ) as error:
        make(c_in, c_out, **options)
    assert "\n" not in str(error.value)


def test_mobileone_without_branches_is_refused():
    with pytest.raises(ReparamError, match="needs at least 1 branch, found 0"):
        MobileOneBlock(4, 4, branches=0)


def test_a_norm_without_statistics_cannot_be_folded():
    with pytest.raises(ReparamError, match="without running statistics"):
        fold_norm(torch.randn(2, 2, 1, 1), None, nn.BatchNorm2d(2, track_running_stats=False))
