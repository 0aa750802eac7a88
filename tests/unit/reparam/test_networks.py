import pytest
import torch
from torch import nn

from reparam import Block, ChannelMask, LightBlock, PlainBlock, compare, fuse
from reparam.errors import ReparamError
from reparam.networks import light_network, plain_network


@pytest.mark.parametrize(("make", "kind", "convs"), [(plain_network, PlainBlock, 4), (light_network, LightBlock, 7)])
def test_a_network_ships_as_a_chain_of_convolutions(make, kind, convs, randomized):
    network = make([6, 6, 10, 10], [2, 1, 2, 1], classes=5)
    assert [type(layer) for layer in network[:-1]] == [PlainBlock, kind, kind, kind]
    network[1].mask = ChannelMask(torch.arange(6) % 2 == 0)
    model = randomized(network).double()
    x = torch.randn(2, 3, 19, 18).double()
    fused = fuse(model, x)
    assert fused(x).shape == (2, 5)
    assert compare(model, fused, x).within(1e-12)
    assert not any(isinstance(module, Block | nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == convs
    assert list(dict(fused.named_children())) == list(dict(network.named_children()))


@pytest.mark.parametrize(("widths", "strides"), [([8, 8], [1]), ([], [])])
def test_widths_without_strides_are_refused(widths, strides):
    with pytest.raises(ReparamError, match=f"one stride per width: found {len(widths)} widths, {len(strides)} strides"):
        plain_network(widths, strides, classes=2)
