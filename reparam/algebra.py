"""Pure tensor functions that rewrite convolutions. Exact up to rounding in the dtype of their arguments: give float64 for a proof.

A linear layer is a convolution without a size. Sources: ACNet (Ding et al. 2019) for kernels that differ in shape, RepVGG (Ding et al.
2021) for the identity, the diverse branch block (Ding et al. 2021), transforms I to VI, for all else.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reparam.errors import ReparamError

Kernel = Float[Tensor, "c_out c_in_per_group *size"]
"""Of a convolution in one, two or three dimensions; without a size, of a linear layer."""
Vector = Float[Tensor, " channels"]
Bias = Float[Tensor, " c_out"]
AnyKernel = Float[Tensor, "_ _ ..."]
"""Kernels whose sizes differ from one another."""
Branch = tuple[AnyKernel, Float[Tensor, " _"]]


def norm_affine(
    mean: Vector, variance: Vector, *, eps: float, gamma: Vector | None = None, beta: Vector | None = None
) -> tuple[Vector, Vector]:
    """A batch norm in evaluation mode as `scale * x + shift`, channel by channel.

    Args:
        mean: running mean.
        variance: running variance.
        eps: the norm's epsilon.
        gamma: the norm's scale, None for one.
        beta: the norm's shift, None for zero.
    """
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


def fuse_conv_bn(weight: Kernel, bias: Bias | None, scale: Bias, shift: Bias) -> tuple[Kernel, Bias]:
    """Fold the norm behind a convolution into it, `scale * conv(x) + shift`: exact whatever its padding, stride, dilation and groups."""
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift if bias is None else bias * scale + shift


def fuse_transposed_conv_bn(
    weight: Float[Tensor, "c_in c_out_per_group *size"], bias: Bias | None, scale: Bias, shift: Bias, *, groups: int = 1
) -> tuple[Float[Tensor, "c_in c_out_per_group *size"], Bias]:
    """`fuse_conv_bn` for a transposed convolution, whose kernel has the input channels first."""
    grouped = weight.unflatten(0, (groups, -1))  # groups, c_in per group, c_out per group, size
    scales = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (grouped * scales).flatten(0, 1), shift if bias is None else bias * scale + shift


def fuse_bn_conv(weight: Kernel, bias: Bias | None, scale: Vector, shift: Vector, *, groups: int = 1) -> tuple[Kernel, Bias]:
    """Fold the norm in front of a convolution into it: `conv(scale * x + shift)`.

    Exact where the convolution does not pad, repeats its input, or pads with `shift`; with zeros only if `shift` is zero.
    """
    channels = torch.arange(weight.shape[0], device=weight.device)
    group = channels // (weight.shape[0] // groups)
    scales, shifts = scale.view(groups, -1)[group], shift.view(groups, -1)[group]  # c_out, c_in per group
    total = ((weight.flatten(2).sum(2) if weight.ndim > 2 else weight) * shifts).sum(1)
    return weight * scales.view(*scales.shape, *[1] * (weight.ndim - 2)), total if bias is None else bias + total


def pad_kernel(weight: AnyKernel, size: Sequence[int]) -> AnyKernel:
    """Embed a kernel in the middle of a larger one of zeros: the same if the padding grows by as much as the kernel on each side.

    Raises:
        ReparamError: the kernel is larger than `size`, or cannot be centred in it.
    """
    extra = [wanted - side for wanted, side in zip(size, weight.shape[2:], strict=True)]
    if any(side < 0 or side % 2 for side in extra):
        raise ReparamError(
            f"a kernel of {' x '.join(map(str, weight.shape[2:]))} has no centred place in {' x '.join(map(str, size))}: "
            "the sizes must differ by an even number that is not negative"
        )
    return torch.nn.functional.pad(weight, [side // 2 for side in reversed(extra) for _ in range(2)])


def dilate_kernel(weight: AnyKernel, dilation: Sequence[int]) -> AnyKernel:
    """The kernel that does without dilation what `weight` does with it: zeros between its elements. Padding and stride stay."""
    sides = [(side - 1) * step + 1 for side, step in zip(weight.shape[2:], dilation, strict=True)]
    dilated = weight.new_zeros(*weight.shape[:2], *sides)
    dilated[:, :, *(slice(None, None, step) for step in dilation)] = weight
    return dilated


def regroup_kernel(weight: AnyKernel, groups: int, fewer: int) -> AnyKernel:
    """The kernel in fewer groups, a divisor of `groups`, that does what `weight` does in more: zeros between different groups."""
    ratio, per_group = groups // fewer, weight.shape[1]
    regrouped = weight.new_zeros(weight.shape[0], ratio, *weight.shape[1:])
    channels = torch.arange(weight.shape[0], device=weight.device)
    regrouped[channels, channels // (weight.shape[0] // groups) % ratio] = weight
    return regrouped.reshape(weight.shape[0], ratio * per_group, *weight.shape[2:])


def identity_kernel(channels: int, groups: int = 1, *, dtype: torch.dtype | None = None) -> Kernel:
    """Kernel of the 1x1 convolution that returns its input; depth-wise for as many groups as channels."""
    kernel = torch.zeros(channels, channels // groups, 1, 1, dtype=dtype)
    index = torch.arange(channels)
    kernel[index, index % (channels // groups)] = 1
    return kernel


def average_kernel(channels: int, size: Sequence[int], groups: int = 1, *, dtype: torch.dtype | None = None) -> Kernel:
    """Kernel of the convolution that averages as a pooling of that size does that counts its padding, with its stride and padding."""
    kernel = identity_kernel(channels, groups, dtype=dtype) / math.prod(size)
    return kernel.view(*kernel.shape[:2], *[1] * len(size)).repeat(1, 1, *size)


def merge_parallel(branches: Sequence[Branch]) -> Branch:
    """The one convolution that equals the sum of several over the same input.

    Smaller kernels are centred in the largest: each branch must have the padding `size // 2` of its own size (of its dilated size, see
    `dilate_kernel`) plus one number for all, and all the same stride and groups.

    Raises:
        ReparamError: the sizes differ by an odd number.
    """
    size = [max(sides) for sides in zip(*(weight.shape[2:] for weight, _ in branches), strict=True)]
    weights, biases = zip(*branches, strict=True)
    return torch.stack([pad_kernel(weight, size) for weight in weights]).sum(0), torch.stack(biases).sum(0)


def merge_serial(first: Branch, second: Branch, *, groups: int = 1) -> Branch:
    """The one convolution that equals two, one after the other, of which one is 1x1: without padding, and if it is the first, of stride 1.

    Dilation and padding are those of the other one; the strides multiply. Exact where the second one does not pad, or pads with the
    first one's bias, as the diverse branch block does; the merged convolution then pads with zeros.

    Args:
        first: kernel and bias.
        second: kernel and bias, with as many dimensions.
        groups: of both.
    """
    (point, point_bias), (weight, bias) = first, second
    inner, outer = (kernel.flatten(2) if kernel.ndim > 2 else kernel.unsqueeze(2) for kernel in (point, weight))
    grouped = outer.unflatten(0, (groups, -1))
    merged = torch.einsum("gomq,gmir->goiqr", grouped, inner.unflatten(0, (groups, -1))).flatten(0, 1)
    carried = torch.einsum("gomq,gm->go", grouped, point_bias.unflatten(0, (groups, -1)))
    size = weight.shape[2:] if math.prod(weight.shape[2:]) > 1 else point.shape[2:]
    return merged.reshape(*merged.shape[:2], *size), bias + carried.flatten()
