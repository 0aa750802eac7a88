"""Pure tensor functions that rewrite convolutions, exact up to rounding in the dtype of their arguments.

Pass float64 for a proof.

A linear layer is a convolution with no spatial dimensions. Sources: ACNet (Ding et al. 2019) for kernels of different
shapes, RepVGG (Ding et al. 2021) for the identity, and the diverse branch block (Ding et al. 2021), transforms I to VI,
for everything else.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reparam.errors import ReparamError

Kernel = Float[Tensor, "c_out c_in_per_group *size"]
"""Kernel of a convolution in one, two or three dimensions, or of a linear layer, which has no `size`."""
Vector = Float[Tensor, " channels"]
Bias = Float[Tensor, " c_out"]
AnyKernel = Float[Tensor, "_ _ ..."]
"""A kernel whose size need not match that of others in the same call."""
Branch = tuple[AnyKernel, Float[Tensor, " _"]]


def norm_affine(
    mean: Vector, variance: Vector, *, eps: float, gamma: Vector | None = None, beta: Vector | None = None
) -> tuple[Vector, Vector]:
    """Return `scale` and `shift` of a batch norm in evaluation mode, written as `scale * x + shift` per channel.

    Args:
        mean: running mean.
        variance: running variance.
        eps: the norm's epsilon.
        gamma: the norm's scale; None means 1.
        beta: the norm's shift; None means 0.
    """
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


def fuse_conv_bn(weight: Kernel, bias: Bias | None, scale: Bias, shift: Bias) -> tuple[Kernel, Bias]:
    """Fold the norm after a convolution into it, `scale * conv(x) + shift`.

    Exact for any padding, stride, dilation and groups.
    """
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift if bias is None else bias * scale + shift


def fuse_transposed_conv_bn(
    weight: Float[Tensor, "c_in c_out_per_group *size"], bias: Bias | None, scale: Bias, shift: Bias, *, groups: int = 1
) -> tuple[Float[Tensor, "c_in c_out_per_group *size"], Bias]:
    """Do the same as `fuse_conv_bn` for a transposed convolution, whose kernel has the input channels first."""
    grouped = torch.unflatten(weight, 0, (groups, -1))  # groups, c_in per group, c_out per group, size
    scales = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (grouped * scales).flatten(0, 1), shift if bias is None else bias * scale + shift


def fuse_bn_conv(
    weight: Kernel, bias: Bias | None, scale: Vector, shift: Vector, *, groups: int = 1
) -> tuple[Kernel, Bias]:
    """Fold the norm before a convolution into it: `conv(scale * x + shift)`.

    Exact if the convolution does not pad, replicates its input at the border or pads with `shift`; exact with zero
    padding only if `shift` is zero.
    """
    channels = torch.arange(weight.shape[0], device=weight.device)
    group = channels // (weight.shape[0] // groups)
    scales, shifts = scale.view(groups, -1)[group], shift.view(groups, -1)[group]  # c_out, c_in per group
    total = ((weight.flatten(2).sum(2) if weight.ndim > 2 else weight) * shifts).sum(1)
    return weight * scales.view(*scales.shape, *[1] * (weight.ndim - 2)), total if bias is None else bias + total


def pad_kernel(weight: AnyKernel, size: Sequence[int]) -> AnyKernel:
    """Zero-pad a kernel to a larger size, centred.

    Equivalent if the convolution's padding grows by the same amount on each side.

    Raises:
        ReparamError: the kernel is larger than `size` or cannot be centred in it.
    """
    extra = [target - side for target, side in zip(size, weight.shape[2:], strict=True)]
    if any(side < 0 or side % 2 for side in extra):
        raise ReparamError(
            f"cannot centre a kernel of {' x '.join(map(str, weight.shape[2:]))} in {' x '.join(map(str, size))}: "
            "the sizes must differ by an even, non-negative number"
        )
    return torch.nn.functional.pad(weight, [side // 2 for side in reversed(extra) for _ in range(2)])


def dilate_kernel(weight: AnyKernel, dilation: Sequence[int]) -> AnyKernel:
    """Insert zeros between the elements of a kernel so that it needs no dilation. Padding and stride stay the same."""
    sides = [(side - 1) * step + 1 for side, step in zip(weight.shape[2:], dilation, strict=True)]
    dilated = weight.new_zeros(*weight.shape[:2], *sides)
    dilated[:, :, *(slice(None, None, step) for step in dilation)] = weight
    return dilated


def regroup_kernel(weight: AnyKernel, groups: int, fewer: int) -> AnyKernel:
    """Rewrite a kernel of `groups` groups for `fewer` groups, a divisor of `groups`.

    Zeros fill the space between the old groups.
    """
    ratio, per_group = groups // fewer, weight.shape[1]
    regrouped = weight.new_zeros(weight.shape[0], ratio, *weight.shape[1:])
    channels = torch.arange(weight.shape[0], device=weight.device)
    regrouped[channels, channels // (weight.shape[0] // groups) % ratio] = weight
    return regrouped.reshape(weight.shape[0], ratio * per_group, *weight.shape[2:])


def identity_kernel(channels: int, groups: int = 1, *, dtype: torch.dtype | None = None) -> Kernel:
    """Return the kernel of a 1x1 convolution that passes its input through.

    Depth-wise if `groups` equals `channels`.
    """
    kernel = torch.zeros(channels, channels // groups, 1, 1, dtype=dtype)
    index = torch.arange(channels)
    kernel[index, index % (channels // groups)] = 1
    return kernel


def average_kernel(channels: int, size: Sequence[int], groups: int = 1, *, dtype: torch.dtype | None = None) -> Kernel:
    """Return the kernel of a convolution equal to average pooling that counts its padding.

    It takes the pooling's stride and padding.
    """
    kernel = identity_kernel(channels, groups, dtype=dtype) / math.prod(size)
    return kernel.view(*kernel.shape[:2], *[1] * len(size)).repeat(1, 1, *size)


def merge_parallel(branches: Sequence[Branch]) -> Branch:
    """Merge parallel convolutions over the same input into one that equals their sum.

    Smaller kernels are centred in the largest. Each branch must pad by `size // 2` of its own size (of its dilated
    size, see `dilate_kernel`) plus a constant common to all branches, and all must have the same stride and groups.

    Raises:
        ReparamError: the sizes differ by an odd number.
    """
    size = [max(sides) for sides in zip(*(weight.shape[2:] for weight, _ in branches), strict=True)]
    weights, biases = zip(*branches, strict=True)
    return torch.stack([pad_kernel(weight, size) for weight in weights]).sum(0), torch.stack(biases).sum(0)


def merge_serial(first: Branch, second: Branch, *, groups: int = 1) -> Branch:
    """Merge two consecutive convolutions into one. One of them is 1x1 and unpadded, and has stride 1 if it comes first.

    The result takes dilation and padding from the other one; strides multiply. Exact if the second does not pad, or
    pads with the first one's bias, as the diverse branch block does; the merged convolution then pads with zeros.

    Args:
        first: kernel and bias.
        second: kernel and bias, of the same number of dimensions.
        groups: number of groups of both.
    """
    (point, point_bias), (weight, bias) = first, second
    inner, outer = (kernel.flatten(2) if kernel.ndim > 2 else kernel.unsqueeze(2) for kernel in (point, weight))
    grouped = torch.unflatten(outer, 0, (groups, -1))
    merged = torch.einsum("gomq,gmir->goiqr", grouped, torch.unflatten(inner, 0, (groups, -1))).flatten(0, 1)
    carried = torch.einsum("gomq,gm->go", grouped, torch.unflatten(point_bias, 0, (groups, -1)))
    size = weight.shape[2:] if math.prod(weight.shape[2:]) > 1 else point.shape[2:]
    return merged.reshape(*merged.shape[:2], *size), bias + carried.flatten()
