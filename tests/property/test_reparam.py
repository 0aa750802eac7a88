"""Any chain of blocks under any masks: fused and squeezed, the network computes the same."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reparam import ChannelMask, RepVGGBlock, compare, fuse, squeeze


@st.composite
def masks(draw, width):
    """Half of them extreme: one channel left, all but one, all."""
    one = st.integers(0, width - 1).map(lambda index: [channel == index for channel in range(width)])
    extreme = one | one.map(lambda keep: [not bit for bit in keep]).filter(any) | st.just([True] * width)
    free = st.lists(st.booleans(), min_size=width, max_size=width).filter(any)
    return torch.tensor(draw(extreme if draw(st.booleans()) else free))


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels, modules = 3, []
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from([channels, *range(1, 9)]))
        act = draw(st.sampled_from([nn.ReLU, nn.SiLU, nn.Hardswish, nn.Identity]))
        modules.append(
            RepVGGBlock(
                channels, width, stride=draw(st.sampled_from([1, 2])), act=act, mask=ChannelMask(draw(masks(width)))
            )
        )
        channels = width
    for module in nn.Sequential(*modules).modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3.0)
    side = draw(st.integers(1, 2))
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(channels * side**2, 5))


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(5, 12), st.integers(1, 3))
def test_fused_and_squeezed_equals_masked(model, side, batch):
    x = torch.randn(batch, 3, side, side)
    exact = model.double()
    squeezed = squeeze(fuse(exact, x), x)
    assert compare(exact, squeezed, x).within(1e-10)
    assert compare(exact, squeezed, x, torch.float32).within(1e-5)
    kept = [int(block.mask.keep.sum()) for block in model if isinstance(block, RepVGGBlock)]
    assert [block.conv.out_channels for block in squeezed if hasattr(block, "conv")] == kept
