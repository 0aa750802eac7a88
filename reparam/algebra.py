"""Pure tensor functions that rewrite convolutions. Exact up to rounding in the dtype of their arguments: give float64 for a proof.

A rewrite is exact on every pixel, the borders too, or it is refused. Sources: ACNet (Ding et al. 2019) for kernels that differ in shape,
RepVGG (Ding et al. 2021) for the identity, the diverse branch block (Ding et al. 2021), transforms I to VI, for all else.
"""

import math
from collections.abc import Sequence
from typing import Literal

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
Border = Literal["none", "zeros", "bias"]
"""What surrounds the input of a convolution: nothing, zeros, or in each channel the bias of the convolution before."""


def norm_affine(
    mean: Vector, variance: Vector, *, eps: float, gamma: Vector | None = None, beta: Vector | None = None
) -> tuple[Vector, Vector]:
    """A batch norm in evaluation mode as `scale * x + shift`, channel by channel.

    `shift` is also what the norm makes of zero.

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
    """Fold the norm behind a convolution or a linear layer into it: `scale * conv(x) + shift`.

    It acts on each output channel by itself, so it is exact whatever the padding, stride, dilation and groups of the convolution.

    Returns:
        Kernel and bias of the one convolution that does the same.
    """
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift if bias is None else bias * scale + shift


def fuse_transposed_conv_bn(
    weight: Float[Tensor, "c_in c_out_per_group *size"], bias: Bias | None, scale: Bias, shift: Bias, *, groups: int = 1
) -> tuple[Float[Tensor, "c_in c_out_per_group *size"], Bias]:
    """`fuse_conv_bn` for a transposed convolution, whose kernel has the input channels first; exact for the same reason."""
    grouped = weight.unflatten(0, (groups, -1))  # groups, c_in per group, c_out per group, size
    scales = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (grouped * scales).flatten(0, 1), shift if bias is None else bias * scale + shift


def fuse_bn_conv(
    weight: Kernel, bias: Bias | None, scale: Vector, shift: Vector, *, groups: int = 1, border: Literal["none", "zeros"] = "none"
) -> tuple[Kernel, Bias]:
    """Fold the norm in front of a convolution or a linear layer into it: `conv(scale * x + shift)`.

    Args:
        weight: kernel of the convolution.
        bias: its bias, None for zero.
        scale: the norm's, one for each input channel of the convolution.
        shift: the norm's.
        groups: of the convolution.
        border: "zeros" where the convolution pads with zeros. Padding that repeats the input, and padding of the norm's output with its
            own `shift` ahead of the convolution, are as exact as none: "none".

    Raises:
        ReparamError: the convolution pads with zeros, which the norm would not make of zeros.
    """
    if border == "zeros" and shift.any():
        raise ReparamError(
            "a norm in front of a convolution that pads with zeros has no exact place in it: the padding is zero behind the norm, not "
            "in front of it; pad with the norm's value of zero, or not at all"
        )
    channels = torch.arange(weight.shape[0], device=weight.device)
    group = channels // (weight.shape[0] // groups)
    scales, shifts = scale.view(groups, -1)[group], shift.view(groups, -1)[group]  # c_out, c_in per group
    moved = (weight.flatten(2).sum(2) if weight.ndim > 2 else weight) * shifts
    total = moved.sum(1)
    return weight * scales.view(*scales.shape, *[1] * (weight.ndim - 2)), total if bias is None else bias + total


def pad_kernel(weight: AnyKernel, size: Sequence[int]) -> AnyKernel:
    """Embed a kernel in the middle of a larger one of zeros.

    The convolution stays the same if its padding grows by as much as the kernel on each side.

    Args:
        weight: kernel of a convolution.
        size: of the larger one, in as many dimensions.

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
    """The kernel in fewer groups that does what `weight` does in more: zeros between channels of different groups.

    Raises:
        ReparamError: the fewer do not divide the more.
    """
    if groups % fewer:
        raise ReparamError(f"a kernel of {groups} groups cannot be one of {fewer}: they must divide evenly")
    ratio, per_group = groups // fewer, weight.shape[1]
    regrouped = weight.new_zeros(weight.shape[0], ratio, *weight.shape[1:])
    channels = torch.arange(weight.shape[0], device=weight.device)
    regrouped[channels, channels // (weight.shape[0] // groups) % ratio] = weight
    return regrouped.reshape(weight.shape[0], ratio * per_group, *weight.shape[2:])


def identity_kernel(channels: int, groups: int = 1, size: int = 1, *, dtype: torch.dtype | None = None) -> Kernel:
    """Kernel of the convolution (stride 1, padding size // 2) that returns its input; depth-wise for as many groups as channels.

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


def average_kernel(
    channels: int,
    size: tuple[int, int],
    groups: int = 1,
    *,
    padded: bool = False,
    count_include_pad: bool = True,
    ceil_mode: bool = False,
    dtype: torch.dtype | None = None,
) -> Kernel:
    """Kernel of the convolution that averages as a pooling of that size does, with its stride and padding.

    Args:
        channels: of input and output.
        size: height and width of the window.
        groups: of the convolution.
        padded: whether the pooling pads at all.
        count_include_pad: whether padding counts in the mean.
        ceil_mode: whether windows may hang over the border.
        dtype: of the kernel.

    Raises:
        ReparamError: windows at the border are divided by fewer pixels, or channels do not divide into the groups.
    """
    if ceil_mode or (padded and not count_include_pad):
        raise ReparamError(
            "average pooling with count_include_pad=False and padding, or with ceil_mode=True, divides by fewer pixels at the border: no "
            "convolution does"
        )
    return (identity_kernel(channels, groups, dtype=dtype) / (size[0] * size[1])).repeat(1, 1, *size)


def merge_parallel(branches: Sequence[Branch]) -> Branch:
    """The one convolution that equals the sum of several over the same input.

    Smaller kernels are centred in the largest: each branch must have the padding `size // 2` of its own size (of its dilated size, see
    `dilate_kernel`) plus one number for all, and all the same stride and groups.

    Raises:
        ReparamError: the sizes differ by an odd number.
    """
    assert branches, "nothing to merge"
    size = [max(sides) for sides in zip(*(weight.shape[2:] for weight, _ in branches), strict=True)]
    weights, biases = zip(*branches, strict=True)
    return torch.stack([pad_kernel(weight, size) for weight in weights]).sum(0), torch.stack(biases).sum(0)


def merge_serial(first: Branch, second: Branch, *, groups: int = 1, border: Border = "none") -> Branch:
    """The one convolution that equals two, one after the other, of which one is 1x1: without padding, and if it is the first, of stride 1.

    Dilation and padding are those of the other one; the strides multiply.

    Args:
        first: kernel and bias.
        second: kernel and bias, with as many dimensions.
        groups: of both.
        border: what pads the second one's input. "none" and "bias" (the first one's bias, as the diverse branch block does) are exact,
            the merged convolution then pads with zeros; "zeros" is, if the first has no bias.

    Raises:
        ReparamError: neither kernel is 1x1, or the second one pads with zeros what has a bias.
    """
    (point, point_bias), (weight, bias) = first, second
    if min(math.prod(kernel.shape[2:]) for kernel in (point, weight)) > 1:
        sizes = " and ".join(" x ".join(map(str, kernel.shape[2:])) for kernel in (point, weight))
        raise ReparamError(f"one of two serial convolutions must be 1 x 1 to be merged, found {sizes}")
    if border == "zeros" and point_bias.any():
        raise ReparamError(
            "a 1 x 1 convolution with bias followed by one that pads with zeros is no single convolution: the padding lacks the bias; pad "
            "with the bias, or not at all"
        )
    inner, outer = (kernel.flatten(2) if kernel.ndim > 2 else kernel.unsqueeze(2) for kernel in (point, weight))
    grouped = outer.unflatten(0, (groups, -1))
    merged = torch.einsum("gomq,gmir->goiqr", grouped, inner.unflatten(0, (groups, -1))).flatten(0, 1)
    carried = torch.einsum("gomq,gm->go", grouped, point_bias.unflatten(0, (groups, -1)))
    size = weight.shape[2:] if math.prod(weight.shape[2:]) > 1 else point.shape[2:]
    return merged.reshape(*merged.shape[:2], *size), bias + carried.flatten()
