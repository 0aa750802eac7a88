import pytest
import torch
from torch import nn

from reparam.algebra import fuse_conv_bn, identity_kernel, merge_parallel, pad_kernel
from reparam.errors import ReparamError


def conv(x, weight, bias=None, **options):
    return nn.functional.conv2d(x, weight, bias, **options)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_folded_norm_computes_the_same(biased, affine):
    x, weight = torch.randn(2, 4, 7, 7).double(), torch.randn(6, 4, 3, 3).double()
    bias = torch.randn(6).double() if biased else None
    mean, variance = torch.randn(6).double(), torch.rand(6).double() + 0.1
    gamma, beta = (torch.randn(6).double(), torch.randn(6).double()) if affine else (None, None)
    expected = nn.functional.batch_norm(conv(x, weight, bias, padding=1), mean, variance, gamma, beta, eps=1e-3)
    folded = fuse_conv_bn(weight, bias, mean=mean, variance=variance, eps=1e-3, gamma=gamma, beta=beta)
    torch.testing.assert_close(conv(x, *folded, padding=1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "size"), [((1, 1), 3), ((3, 1), 5), ((3, 3), 3)])
def test_a_padded_kernel_computes_the_same_with_larger_padding(shape, size):
    x, weight = torch.randn(1, 2, 8, 8), torch.randn(3, 2, *shape)
    expected = conv(x, weight, padding=(shape[0] // 2, shape[1] // 2))
    torch.testing.assert_close(conv(x, pad_kernel(weight, size), padding=size // 2), expected)


@pytest.mark.parametrize("size", [2, 1])
def test_a_kernel_without_a_centred_place_is_refused(size):
    with pytest.raises(ReparamError, match=f"3 x 3 has no centred place in {size} x {size}"):
        pad_kernel(torch.randn(1, 1, 3, 3), size)


@pytest.mark.parametrize(("groups", "size"), [(1, 1), (1, 3), (3, 3), (6, 5)])
def test_the_identity_kernel_returns_its_input(groups, size):
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(conv(x, identity_kernel(6, groups, size), padding=size // 2, groups=groups), x)


@pytest.mark.parametrize(("channels", "groups", "size"), [(4, 3, 3), (4, 1, 2)])
def test_an_impossible_identity_is_refused(channels, groups, size):
    with pytest.raises(ReparamError, match="no identity kernel"):
        identity_kernel(channels, groups, size)


def test_merged_branches_compute_their_sum():
    x = torch.randn(2, 4, 9, 9).double()
    branches = [(torch.randn(4, 2, size, size).double(), torch.randn(4).double()) for size in (1, 5, 3)]
    expected = sum(conv(x, weight, bias, padding=weight.shape[2] // 2, stride=2, groups=2) for weight, bias in branches)
    weight, bias = merge_parallel(branches)
    assert weight.shape == (4, 2, 5, 5)
    torch.testing.assert_close(conv(x, weight, bias, padding=2, stride=2, groups=2), expected, rtol=0, atol=1e-12)
