"""Pure tensor functions that rewrite convolutions. Exact up to rounding in the dtype of their arguments: give float64 for a proof."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reparam.errors import ReparamError

Kernel = Float[Tensor, "c_out c_in_per_group height width"]
Bias = Float[Tensor, " c_out"]
Branch = tuple[Float[Tensor, "c_out c_in_per_group _ _"], Bias]


def fuse_conv_bn(
    weight: Kernel,
    bias: Bias | None,
    *,
    mean: Bias,
    variance: Bias,
    eps: float,
    gamma: Bias | None = None,
    beta: Bias | None = None,
) -> tuple[Kernel, Bias]:
    """Fold the batch norm that follows a convolution into it (evaluation mode).

    `gamma * (conv(x) - mean) / sqrt(variance + eps) + beta` is linear in x and acts on each output channel by itself, so it is
    exact whatever the padding, stride, dilation and groups of the convolution.

    Args:
        weight: kernel of the convolution.
        bias: its bias, None for zero.
        mean: running mean of the norm.
        variance: running variance of the norm.
        eps: the norm's epsilon.
        gamma: scale of the norm, None for one.
        beta: shift of the norm, None for zero.

    Returns:
        Kernel and bias of the one convolution that does the same.
    """
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if beta is not None:
        shift = shift + beta
    return weight * scale[:, None, None, None], shift


def pad_kernel(weight: Kernel, size: int) -> Float[Tensor, "c_out c_in_per_group {size} {size}"]:
    """Embed a kernel in the middle of a `size` x `size` one of zeros.

    The convolution stays the same if its padding grows by as much as the kernel on each side.

    Raises:
        ReparamError: the kernel is larger than `size`, or cannot be centred in it.
    """
    extra = (size - weight.shape[2], size - weight.shape[3])
    if min(extra) < 0 or any(side % 2 for side in extra):
        raise ReparamError(
            f"a kernel of {weight.shape[2]} x {weight.shape[3]} has no centred place in {size} x {size}: "
            "the sizes must differ by an even number that is not negative"
        )
    vertical, horizontal = extra[0] // 2, extra[1] // 2
    return torch.nn.functional.pad(weight, (horizontal, horizontal, vertical, vertical))


def identity_kernel(channels: int, groups: int = 1, size: int = 1, *, dtype: torch.dtype | None = None) -> Kernel:
    """Kernel of the convolution (stride 1, padding size // 2) that returns its input.

    Raises:
        ReparamError: an even size, which has no centre, or channels that do not divide into the groups.
    """
    if size % 2 == 0 or channels % groups:
        raise ReparamError(
            f"no identity kernel of size {size} for {channels} channels in {groups} groups: the size must be odd, the groups of equal size"
        )
    per_group = channels // groups
    kernel = torch.zeros(channels, per_group, size, size, dtype=dtype)
    index = torch.arange(channels)
    kernel[index, index % per_group, size // 2, size // 2] = 1
    return kernel


def merge_parallel(branches: Sequence[Branch]) -> tuple[Kernel, Bias]:
    """The one convolution that equals the sum of several over the same input.

    Smaller kernels are centred in the largest one: each branch must have the padding `size // 2` of its own size, and all the same
    stride, dilation and groups.
    """
    assert branches, "nothing to merge"
    size = max(max(weight.shape[2:]) for weight, _ in branches)
    weights, biases = zip(*branches, strict=True)
    return torch.stack([pad_kernel(weight, size) for weight in weights]).sum(0), torch.stack(biases).sum(0)
