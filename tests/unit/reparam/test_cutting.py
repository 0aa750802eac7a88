import copy

import pytest
import torch
from torch import nn

from reparam.blocks import ChannelMask, PlainBlock
from reparam.cutting import cut, mask_calls
from reparam.errors import ReparamError
from reparam.flow import ChannelFlow
from reparam.graph import read_network
from reparam.masking import Masked, Masks, MaskSite, attach_mask
from reparam.rules import rule_of

X = torch.randn(1, 3, 4, 4)


def mask(*keep):
    return ChannelMask(torch.tensor(keep, dtype=torch.bool))


def cut_network(model):
    """The network with its tensors cut; its masks stay."""
    model = copy.deepcopy(model).eval()
    flow = ChannelFlow(read_network(model, (X,)), rule_of)
    flow.finish()
    cut(flow, model)
    return model


def test_a_mask_call_tells_its_source_and_what_it_keeps():
    network = read_network(nn.Sequential(nn.Conv2d(3, 2, 1), mask(1, 0)).eval(), (X,))
    (call,) = mask_calls(network)
    assert (call.path, network.where(call.source), call.keep.tolist()) == ("1", "0", [True, False])


def test_a_mask_attached_to_part_of_a_value_keeps_the_rest():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Masks()).eval()
    model[1].add_module("a", mask(0, 1))
    attach_mask(model[0], Masked(model[1], "a", MaskSite("0", False, 1, (0, 1, -1)), 2))
    (call,) = mask_calls(read_network(model, (X,)))
    assert call.keep.tolist() == [False, True, True]


def test_weights_counts_and_types_of_tensors_follow():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), mask(1, 0, 1, 0), nn.Conv2d(4, 2, 1))
    model[0].weight.requires_grad_(False)
    after = cut_network(model)
    assert torch.equal(after[0].weight, model[0].weight[[0, 2]])
    assert not after[0].weight.requires_grad
    assert torch.equal(after[3].weight, model[3].weight[:, [0, 2]])
    assert (after[0].out_channels, after[1].num_features, after[3].in_channels) == (2, 2, 2)
    assert after[1].running_mean.shape == (2,)
    assert not isinstance(after[1].running_mean, nn.Parameter)


def test_a_constant_behind_the_mask_goes_into_the_next_bias():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), mask(1, 0), nn.Sigmoid(), nn.Conv2d(2, 1, 1)).eval()
    bias = cut_network(model)[3].bias
    torch.testing.assert_close(bias, (model[3].bias + model[3].weight[:, 1, 0, 0] / 2).double())


def test_groups_without_channels_are_removed():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), mask(1, 1, 0, 0), nn.Conv2d(4, 4, 1, groups=2), mask(1, 1, 0, 0))
    model.append(nn.Conv2d(4, 1, 1))
    after = cut_network(model)
    assert (after[2].groups, after[2].weight.shape) == (1, (2, 2, 1, 1))


def test_a_shared_tensor_is_replaced_under_all_of_its_names():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), mask(1, 0), nn.Conv2d(2, 1, 1))
    model.alias = model[0].weight
    after = cut_network(model)
    assert after.alias is after[0].weight
    assert after.alias.shape[0] == 1


def test_a_block_must_be_fused_first():
    model = nn.Sequential(PlainBlock(3, 4, mask=mask(1, 0, 1, 1)), nn.Conv2d(4, 1, 1))
    with pytest.raises(ReparamError, match=r"block 0 is a PlainBlock with masked channels: run fuse\(model\) first"):
        cut_network(model)
