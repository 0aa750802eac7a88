"""Any block, and any layer with a norm beside it: fused, it computes the same, on every pixel; what would not is left alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from reparam import (
    ACBlock,
    Block,
    ChannelMask,
    DiverseBranchBlock,
    LightBlock,
    MobileOneBlock,
    PlainBlock,
    RepVGGBlock,
    compare,
    fuse,
)
from reparam.algebra import average_kernel, dilate_kernel, merge_parallel, merge_serial

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def shaken(module, *, affine=True):
    """As after training; no scale is so small that its inverse hides mistakes."""
    for norm in module.modules():
        if isinstance(norm, NORMS):
            if norm.affine and affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 3.0)
    return module.eval()


class Beside(nn.Module):
    """Parts with an input each: a network is read once for all of them."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs):
        return [part(x) for part, x in zip(self.parts, inputs, strict=True)]


def same(models, inputs):
    """Each within 1e-10 in float64 and 1e-5 in float32; the fused forms, in float64."""
    exact = Beside(models).double()
    fused = fuse(exact, tuple(inputs))
    for one, other, x in zip(exact.parts, fused.parts, inputs, strict=True):
        assert compare(one, other, x).within(1e-10)
        assert compare(one, other, x, torch.float32).within(1e-5)
    return fused.parts


@st.composite
def blocks(draw):
    """A block, and an input for it; the activation keeps the scale of the output, so that float32 can be judged by it."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups = draw(st.integers(1, 3))
    c_in, c_out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    c_out = draw(st.sampled_from([c_in, c_out]))
    options = {"stride": draw(st.integers(1, 3)), "act": draw(st.sampled_from([nn.Identity, nn.LeakyReLU]))}
    keep = torch.tensor(draw(st.lists(st.booleans(), min_size=c_out, max_size=c_out)))
    if draw(st.booleans()):
        options["mask"] = ChannelMask(keep | ~keep.any())
    make = draw(st.sampled_from([RepVGGBlock, MobileOneBlock, ACBlock, DiverseBranchBlock, PlainBlock, LightBlock]))
    if make is not LightBlock:
        options |= {"groups": draw(st.sampled_from([1, groups])), "kernel": draw(st.sampled_from([1, 3, 5]))}
    if make is MobileOneBlock:
        options["branches"] = draw(st.integers(1, 4))
    sides = draw(st.tuples(st.integers(1, 9), st.integers(6, 9)))
    return shaken(make(c_in, c_out, **options)), torch.randn(draw(st.integers(1, 3)), c_in, *sides)


@settings(max_examples=15, deadline=None)
@given(st.lists(blocks(), min_size=6, max_size=6))
def test_a_block_is_deployed_as_the_same_function(drawn):
    drawn_blocks, inputs = zip(*drawn, strict=True)
    for block, fused in zip(drawn_blocks, same(drawn_blocks, inputs), strict=True):
        assert not any(isinstance(module, (Block, *NORMS)) for module in fused.modules())
        convs = sum(isinstance(module, nn.Conv2d) for module in fused.modules())
        assert convs == 1 or (
            convs == 2 and isinstance(block, LightBlock)
        )  # one where there is no activation between the two


CONVS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


@st.composite
def pairs(draw):
    """A norm in front of or behind a layer, an input, and whether it is exact to make one layer of them."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dims, transposed, norm_first = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
    groups = draw(st.integers(1, 3))
    c_in, c_out = (groups * draw(st.integers(1, 3)) for _ in range(2))

    def each(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    kernel, padding = each(1, 3), each(0, 2)
    options = {
        "groups": groups,
        "bias": draw(st.booleans()),
        "stride": each(1, 3),
        "dilation": each(1, 2),
        "padding": padding,
    }
    mode = "zeros"
    if not transposed:
        mode = options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    if mode == "reflect" and dims == 3:
        mode = options["padding_mode"] = "replicate"  # torch has no reflection in three dimensions on every build
    layer = CONVS[dims][transposed](c_in, c_out, kernel, **options)
    norm = NORMS[dims - 1](c_in if norm_first else c_out, affine=draw(st.booleans()))
    keeps_zero = draw(st.booleans())
    shaken(norm, affine=not keeps_zero)
    if keeps_zero:
        norm.running_mean.zero_()
    exact = not norm_first or (not transposed and (mode != "zeros" or not any(padding) or keeps_zero))
    model = nn.Sequential(norm, layer) if norm_first else nn.Sequential(layer, norm)
    return model.eval(), torch.randn(2, c_in, *[draw(st.integers(7, 9)) for _ in range(dims)]), exact


@settings(max_examples=15, deadline=None)
@given(st.lists(pairs(), min_size=8, max_size=8))
def test_a_norm_is_folded_where_and_only_where_that_is_exact(drawn):
    models, inputs, exact = zip(*drawn, strict=True)
    for fused, foldable in zip(same(models, inputs), exact, strict=True):
        assert any(isinstance(module, NORMS) for module in fused.modules()) != foldable


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_serial_and_parallel_branches_of_any_shape_become_one_convolution(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups = draw(st.integers(1, 3))
    c_in, middle, c_out = (groups * draw(st.integers(1, 3)) for _ in range(3))
    size, dilation = ((2 * draw(st.integers(0, 2)) + 1, 2 * draw(st.integers(0, 2)) + 1) for _ in range(2))
    stride = draw(st.integers(1, 2))
    half = tuple(step * (side // 2) for side, step in zip(size, dilation, strict=True))

    def branch(a, b, *shape):
        return torch.randn(b, a // groups, *shape).double(), torch.randn(b).double()

    first, second, dense, point = (
        branch(c_in, middle, 1, 1),
        branch(middle, c_out, *size),
        branch(c_in, c_out, *size),
        branch(c_in, c_out, 1, 1),
    )
    x = torch.randn(2, c_in, 11, 10).double()
    value = first[1].view(-1, 1, 1)
    options = {"stride": stride, "groups": groups}
    hidden = F.pad(F.conv2d(x, *first, groups=groups) - value, (half[1], half[1], half[0], half[0])) + value
    expected = (
        F.conv2d(hidden, *second, dilation=dilation, **options)
        + F.conv2d(x, *dense, dilation=dilation, padding=half, **options)
        + F.conv2d(x, *point, **options)
    )
    serial = merge_serial(first, second, groups=groups)
    weight, bias = merge_parallel([(dilate_kernel(weight, dilation), bias) for weight, bias in (serial, dense, point)])
    found = F.conv2d(x, weight, bias, padding=half, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    pooled = F.conv2d(
        x, average_kernel(c_in, size, groups, dtype=torch.float64), padding=[s // 2 for s in size], **options
    )
    torch.testing.assert_close(pooled, F.avg_pool2d(x, size, stride, [s // 2 for s in size]), rtol=0, atol=1e-12)
