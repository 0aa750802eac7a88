import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reparam.algebra import (
    average_kernel,
    dilate_kernel,
    fuse_bn_conv,
    fuse_conv_bn,
    fuse_transposed_conv_bn,
    identity_kernel,
    merge_parallel,
    merge_serial,
    norm_affine,
    pad_kernel,
)
from reparam.errors import ReparamError


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_is_affine(affine):
    x, mean, variance = normal(2, 6, 3, 3), normal(6), torch.rand(6).double() + 0.1
    gamma, beta = (normal(6), normal(6)) if affine else (None, None)
    scale, shift = norm_affine(mean, variance, eps=1e-3, gamma=gamma, beta=beta)
    close(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("size", "run"), [((), F.linear), ((3,), F.conv1d), ((3, 2), F.conv2d), ((2, 1, 3), F.conv3d)])
def test_a_norm_behind_goes_into_a_convolution_of_any_dimension(biased, size, run):
    x, weight, bias = normal(2, 4, *[5 for _ in size]), normal(6, 4, *size), normal(6) if biased else None
    scale, shift = normal(6), normal(6)
    each = (-1, *[1 for _ in size])
    expected = run(x, weight, bias) * scale.view(each) + shift.view(each)
    close(run(x, *fuse_conv_bn(weight, bias, scale, shift)), expected)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_behind_goes_into_a_transposed_convolution(biased, groups):
    x, weight, bias = normal(2, 4, 5, 5), normal(4, 3, 3, 2), normal(3 * groups) if biased else None
    scale, shift = normal(3 * groups), normal(3 * groups)
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups}
    expected = F.conv_transpose2d(x, weight, bias, **options) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    close(
        F.conv_transpose2d(x, *fuse_transposed_conv_bn(weight, bias, scale, shift, groups=groups), **options), expected
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_norm_in_front_goes_into_a_convolution_without_padding(biased, groups):
    x, weight, bias = normal(2, 4, 6, 6), normal(8, 4 // groups, 3, 3), normal(8) if biased else None
    scale, shift = normal(4), normal(4)
    before = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    folded = fuse_bn_conv(weight, bias, scale, shift, groups=groups)
    close(F.conv2d(x, *folded, stride=2, groups=groups), F.conv2d(before, weight, bias, stride=2, groups=groups))


def test_a_norm_in_front_is_exact_where_its_own_value_pads():
    x, weight, scale, shift = normal(1, 4, 5, 5), normal(3, 4, 3, 3), normal(4), normal(4)
    padded = F.pad(x * scale.view(-1, 1, 1), [1] * 4) + shift.view(-1, 1, 1)
    close(F.conv2d(x, *fuse_bn_conv(weight, None, scale, shift), padding=1), F.conv2d(padded, weight))


@pytest.mark.parametrize(("shape", "size"), [((1, 1), (3, 3)), ((3, 1), (5, 3)), ((1, 3), (3, 3)), ((3, 3), (3, 3))])
def test_a_padded_kernel_computes_the_same_with_larger_padding(shape, size):
    x, weight = normal(1, 2, 8, 8), normal(3, 2, *shape)
    expected = F.conv2d(x, weight, padding=(shape[0] // 2, shape[1] // 2))
    close(F.conv2d(x, pad_kernel(weight, size), padding=(size[0] // 2, size[1] // 2)), expected)


@pytest.mark.parametrize("size", [(2, 3), (3, 1)])
def test_a_kernel_without_a_centred_place_is_refused(size):
    with pytest.raises(ReparamError, match=f"cannot centre a kernel of 3 x 3 in {size[0]} x {size[1]}"):
        pad_kernel(torch.randn(1, 1, 3, 3), size)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_a_dilated_kernel_needs_no_dilation(dilation):
    x, weight = normal(1, 2, 11, 11), normal(4, 1, 3, 2)
    options = {"stride": 2, "padding": (2, 1), "groups": 2}
    close(F.conv2d(x, dilate_kernel(weight, dilation), **options), F.conv2d(x, weight, dilation=dilation, **options))


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_the_identity_kernel_returns_its_input(groups):
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(F.conv2d(x, identity_kernel(6, groups), groups=groups), x)


@pytest.mark.parametrize(("size", "padding"), [((2, 2), 0), ((3, 3), 1), ((3, 5), (1, 2))])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_average_kernel_pools(size, padding, groups):
    x = normal(2, 4, 9, 9)
    kernel = average_kernel(4, size, groups, dtype=torch.float64)
    close(F.conv2d(x, kernel, stride=2, padding=padding, groups=groups), F.avg_pool2d(x, size, 2, padding))


def test_merged_branches_compute_their_sum():
    x = normal(2, 4, 9, 9)
    branches = [(normal(4, 2, *size), normal(4)) for size in ((1, 1), (5, 1), (1, 3), (3, 3))]
    options = {"stride": 2, "groups": 2}
    expected = sum(
        F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), **options)
        for weight, bias in branches
    )
    weight, bias = merge_parallel(branches)
    assert weight.shape == (4, 2, 5, 3)
    close(F.conv2d(x, weight, bias, padding=(2, 1), **options), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("border", ["none", "bias", "zeros"])
def test_serial_convolutions_merge_exactly(groups, border):
    x = normal(2, 4, 7, 7)
    point = (normal(6, 4 // groups, 1, 1), torch.zeros(6).double() if border == "zeros" else normal(6))
    dense = (normal(8, 6 // groups, 3, 5), normal(8))
    hidden, padding = F.conv2d(x, *point, groups=groups), (1, 2)
    if border == "none":
        padding = 0
    elif border == "bias":
        value = point[1].view(-1, 1, 1)
        hidden = F.pad(hidden - value, (2, 2, 1, 1)) + value
    expected = F.conv2d(hidden, *dense, stride=2, padding=padding if border == "zeros" else 0, groups=groups)
    close(F.conv2d(x, *merge_serial(point, dense, groups=groups), stride=2, padding=padding, groups=groups), expected)


def test_nothing_is_rounded_to_single_precision():
    third = nn.Parameter(torch.full((1, 1, 1, 1), 1 / 3, dtype=torch.float64)).detach()
    weight, _ = merge_serial((third, torch.zeros(1).double()), (third, torch.zeros(1).double()))
    assert weight.item() == pytest.approx(1 / 9, rel=1e-15)
    assert average_kernel(1, (3, 3), dtype=torch.float64).dtype == torch.float64
