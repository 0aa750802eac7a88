"""Trainable blocks, each with the form that it is deployed in, and the mask that says which channels are gone."""

import copy
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from reparam.algebra import fuse_conv_bn, identity_kernel, merge_parallel
from reparam.errors import ReparamError

Image = Any
"""Float [batch, channels, height, width]. Not checked: torch.fx traces with a stand-in that is no tensor."""


@final
class ChannelMask(nn.Module):
    """Sets channels to zero: what `squeeze` looks for. `keep` is a buffer, so it is saved with the weights and never trained."""

    keep: Bool[Tensor, " channels"]

    def __init__(self, keep: Bool[Tensor, " channels"]) -> None:
        super().__init__()
        self.register_buffer("keep", keep.clone())

    def forward(self, x: Image) -> Image:
        """Multiply every channel by 0 or 1; images and vectors alike."""
        return x * self.keep.view(-1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        """How many of how many channels stay."""
        return f"{int(self.keep.sum())} of {self.keep.numel()}"


@final
class ConvBlock(nn.Module):
    """Convolution with bias, mask, activation: what a fused block runs as.

    Args:
        c_in: input channels.
        c_out: output channels.
        kernel: odd side of the kernel; the padding is kernel // 2.
        stride: stride in both directions.
        groups: groups of the convolution.
        act: makes the activation.
        mask: what stands between convolution and activation; nothing by default.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: Callable[[], nn.Module] = nn.ReLU,
        mask: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups)
        self.mask = mask or nn.Identity()
        self.act = act()

    def forward(self, x: Image) -> Image:
        """act(mask(conv(x)))."""
        return self.act(self.mask(self.conv(x)))


@final
class RepVGGBlock(nn.Module):
    """The training form of RepVGG (Ding et al. 2021): a 3x3, a 1x1 and, where shapes allow, an identity branch, each with its norm.

    The mask stands after the sum of the branches, as the depth-wise binary convolution of PaS does (Li et al. 2022, Eq. 6), so that a
    masked channel is gone from all of them.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: stride in both directions; the identity branch exists for c_in == c_out and stride 1 only.
        groups: groups of both convolutions.
        act: makes the activation.
        mask: what stands between the sum and the activation; nothing by default.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        stride: int = 1,
        groups: int = 1,
        act: Callable[[], nn.Module] = nn.ReLU,
        mask: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.dense = _ConvNorm(c_in, c_out, kernel=3, stride=stride, groups=groups)
        self.point = _ConvNorm(c_in, c_out, kernel=1, stride=stride, groups=groups)
        self.identity = nn.BatchNorm2d(c_out) if c_in == c_out and stride == 1 else None
        self.mask = mask or nn.Identity()
        self.act = act()

    def forward(self, x: Image) -> Image:
        """act(mask(dense(x) + point(x) + identity(x)))."""
        total = self.dense(x) + self.point(x)
        if self.identity is not None:
            total = total + self.identity(x)
        return self.act(self.mask(total))

    def deployed(self) -> ConvBlock:
        """The one 3x3 convolution that computes the same in evaluation mode, with copies of mask and activation.

        Folded in the dtype of the block: `fuse` folds in float64 and rounds once.
        """
        conv = self.dense.conv
        branches = [fold_norm(part.conv.weight, part.conv.bias, part.norm) for part in (self.dense, self.point)]
        if self.identity is not None:
            kernel = identity_kernel(conv.out_channels, conv.groups, dtype=conv.weight.dtype).to(conv.weight.device)
            branches.append(fold_norm(kernel, None, self.identity))
        weight, bias = merge_parallel(branches)
        with torch.device("meta"):  # initial weights would cost time and draw from torch's seed
            block = ConvBlock(conv.in_channels, conv.out_channels, stride=conv.stride[0], groups=conv.groups)
        block.mask, block.act = copy.deepcopy(self.mask), copy.deepcopy(self.act)
        block.conv.weight, block.conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return block.eval()


class _ConvNorm(nn.Module):
    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Image) -> Image:
        return self.norm(self.conv(x))


def fold_norm(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """`fuse_conv_bn` with the numbers of a module.

    Raises:
        ReparamError: the norm keeps no running statistics, so it has no fixed scale to fold.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ReparamError("a batch norm without running statistics depends on its batch and cannot be folded into a convolution")
    return fuse_conv_bn(weight, bias, mean=norm.running_mean, variance=norm.running_var, eps=norm.eps, gamma=norm.weight, beta=norm.bias)
