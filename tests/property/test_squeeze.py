"""Every network of the zoo under any masks: fused and squeezed, it computes the same, with the widths that the masks keep."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from reparam import ChannelMask, RepVGGBlock, channel_groups, compare, count, fuse, insert_masks, squeeze
from zoo import ZOO

EXAMPLES = 1  # of each property and network; benchmarks/squeeze.py draws a hundred
NETWORKS = pytest.mark.parametrize("network", ZOO, ids=lambda network: network.name)
# Smaller masks of the same network tell no more: no shrinking.
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@st.composite
def masks(draw, width):
    """Half of them extreme: one channel left, all but one, all."""
    one = st.integers(0, width - 1)
    kind = draw(st.sampled_from(["one", "all but one", "all", *["free"] * 3]))
    keep = torch.full((width,), kind != "one")
    if kind == "free":
        seed = draw(st.integers(0, 2**16))
        keep = torch.rand(width, generator=torch.Generator().manual_seed(seed)) < draw(st.floats(0.1, 0.9))
    if kind != "all":
        keep[draw(one)] = kind != "all but one" or width == 1
    return keep


def exact(masked, x):
    """The squeezed network, found equal in both precisions."""
    squeezed = squeeze(fuse(masked, x), x)
    assert compare(masked, squeezed, x).within(1e-10)
    assert compare(masked, squeezed, x, torch.float32).within(1e-5)
    return squeezed


def _width(layer):
    return layer.c_out if isinstance(layer, RepVGGBlock) else layer.weight.shape[0]


@NETWORKS
@SETTINGS
@given(data=st.data())
def test_masked_groups_leave_the_widths_that_their_masks_keep(network, data):
    model, x = network.make(small=True, seed=data.draw(st.integers(0, 99))).double(), network.input(small=True)
    groups = [group for group in channel_groups(model, x) if not group.why]
    keep = {group.name: data.draw(masks(group.channels)) for group in groups}
    squeezed = exact(insert_masks(model, x, groups, lambda group: ChannelMask(keep[group.name])), x)
    for group in groups:
        for name in group.producers:
            layer = squeezed.get_submodule(name)
            layer = getattr(layer, "conv", layer)  # of a block
            width, before = layer.weight.shape[0], _width(model.get_submodule(name))
            if isinstance(layer, nn.ConvTranspose2d):
                width, before = layer.out_channels, model.get_submodule(name).out_channels
            if before == group.channels:
                more = width - int(keep[group.name].sum())
                assert (
                    0 <= more <= (2 if network.name == "Split" else 0)
                )  # a part of a split that is masked whole keeps one channel
            else:  # entries of several channels
                assert (width == before) == bool(keep[group.name].all())
    assert not any(isinstance(module, ChannelMask) for module in squeezed.modules())


@NETWORKS
@SETTINGS
@given(data=st.data())
def test_masks_that_know_of_no_groups_are_exact_too(network, data):
    """One behind every convolution with its norm, as somebody would put them who does not look at the graph."""
    model, x = network.make(small=True, seed=data.draw(st.integers(0, 99))).double(), network.input(small=True)
    x = x.double()
    before = count(model, x).params
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RepVGGBlock):
                child.mask = ChannelMask(data.draw(masks(child.dense.conv.out_channels)))
            elif isinstance(child, nn.Sequential) and isinstance(child[0], nn.Conv2d):
                setattr(parent, name, nn.Sequential(child, ChannelMask(data.draw(masks(child[0].out_channels)))))
            elif isinstance(child, nn.InstanceNorm2d):
                setattr(parent, name, nn.Sequential(child, ChannelMask(data.draw(masks(child.num_features)))))
    assert count(exact(model, x), x).params <= before
