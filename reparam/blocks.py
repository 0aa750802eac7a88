"""Trainable blocks with their deployed forms, and the mask that marks pruned channels."""

import copy
import operator
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from reparam.algebra import (
    Branch,
    average_kernel,
    fuse_conv_bn,
    identity_kernel,
    merge_parallel,
    merge_serial,
    norm_affine,
)
from reparam.errors import ReparamError

if TYPE_CHECKING:
    Image: TypeAlias = Tensor
    """Float [batch, channels, height, width]."""
else:
    Image = Any  # a network may be traced with proxies, which are not tensors


@final
class ChannelMask(nn.Module):
    """Zeroes the channels that `squeeze` removes.

    `keep` is a buffer: it is saved with the weights and never trained.
    """

    keep: Bool[Tensor, " channels"]

    def __init__(self, keep: Bool[Tensor, " channels"]) -> None:
        super().__init__()
        self.register_buffer("keep", keep.clone())

    def forward(self, x: Image) -> Image:
        """Multiply each channel of an image or a vector by 0 or 1.

        Raises:
            ReparamError: the number of channels differs from the number of entries.
        """
        if x.shape[1] != self.keep.numel():
            raise ReparamError(
                f"a mask has {self.keep.numel()} entries for {x.shape[1]} channels: it needs one entry per channel"
            )
        return x * self.keep.view(-1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        """Return the number of kept channels out of all."""
        return f"{int(self.keep.sum())} of {self.keep.numel()}"


@final
class ConvBlock(nn.Module):
    """The deployed form of a block: a convolution with bias, a mask and an activation.

    Takes the arguments of `BranchedBlock`; pads by kernel // 2.
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
        """Return act(mask(conv(x)))."""
        return self.act(self.mask(self.conv(x)))


class Block(nn.Module, ABC):
    """A block in its training form. `fuse` replaces every subclass by its deployed form.

    `mask` sits between the merged branches and the activation and may be replaced. Like the depth-wise binary
    convolution of PaS (Li et al. 2022, Eq. 6), it removes a channel from all branches at once.
    """

    mask: nn.Module

    @abstractmethod
    def deployed(self) -> nn.Module:
        """Return an equivalent module for evaluation mode: one convolution per sum of branches.

        Mask and activation are copied. Folds in the dtype of the block; `fuse` folds in float64 and rounds once.

        Raises:
            ReparamError: a norm of the block has no running statistics.
        """

    @abstractmethod
    def probe_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the smallest input that exercises borders, inner pixels and strides."""


class BranchedBlock(Block, ABC):
    """A block that computes act(mask(sum of branches)) and is deployed as one `ConvBlock`.

    Args:
        c_in: input channels.
        c_out: output channels.
        kernel: side of the largest kernel, odd; every branch pads so that its output stays aligned.
        stride: stride in both directions.
        groups: groups of every convolution; equal to the number of channels for a depth-wise block.
        act: creates the activation.
        mask: applied between the sum and the activation; identity by default.

    Raises:
        ReparamError: the kernel is even, or the channels are not divisible by `groups`.
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
        if kernel % 2 == 0 or c_in % groups or c_out % groups:
            raise ReparamError(
                f"invalid block: kernel {kernel}, {c_in} to {c_out} channels, {groups} groups; the kernel must be odd "
                "and the channels divisible by the number of groups"
            )
        self.c_in, self.c_out, self.kernel, self.stride, self.groups = c_in, c_out, kernel, stride, groups
        self._add_branches()
        self.mask = mask or nn.Identity()
        self.act = act()

    @abstractmethod
    def _add_branches(self) -> None:
        """Create the modules of the branches; the block's sizes are already set."""

    def _branches(self) -> list[nn.Module]:
        """Return all branches over the block's input: convolutions with a norm, and identities with or without one."""
        children = [child for name, child in self.named_children() if name not in ("mask", "act")]
        return [part for child in children for part in (child if isinstance(child, nn.ModuleList) else [child])]

    def total(self, x: Image) -> Image:
        """Return the sum of the branches.

        Float [batch, c_in, height, width] -> [batch, c_out, height / stride, width / stride].
        """
        outputs: Iterator[Tensor] = (branch(x) for branch in self._branches())
        return reduce(operator.add, outputs)

    def merged(self) -> Branch:
        """Return kernel and bias of the convolution that equals `total` in evaluation mode."""
        return merge_parallel([self._folded(branch) for branch in self._branches()])

    def _folded(self, branch: nn.Module) -> Branch:
        if isinstance(branch, _ConvNorm):
            return fold_norm(branch.conv.weight, branch.conv.bias, branch.norm)
        like = next(self.parameters())
        kernel = identity_kernel(self.c_out, self.groups, dtype=like.dtype).to(like.device)
        if isinstance(branch, nn.Identity):
            return kernel, like.new_zeros(self.c_out)
        assert isinstance(branch, Norm)
        return fold_norm(kernel, None, branch)

    def forward(self, x: Image) -> Image:
        """Return act(mask(total(x)))."""
        return self.act(self.mask(self.total(x)))

    def deployed(self) -> ConvBlock:
        """Return the block as one convolution."""
        weight, bias = self.merged()
        with torch.device("meta"):  # initial weights would cost time and draw from torch's seed
            block = ConvBlock(self.c_in, self.c_out, kernel=self.kernel, stride=self.stride, groups=self.groups)
        block.mask, block.act = copy.deepcopy(self.mask), copy.deepcopy(self.act)
        block.conv.weight, block.conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return block.eval()

    def probe_shape(self) -> tuple[int, int, int]:
        """Return the shape of a square image."""
        side = self.kernel + 2 * self.stride
        return self.c_in, side, side

    def _conv(
        self, size: int | tuple[int, int], c_out: int | None = None, *, stride: int | None = None, padded: bool = True
    ) -> "_ConvNorm":
        height, width = (size, size) if isinstance(size, int) else size
        padding, c_out = (height // 2, width // 2) if padded else 0, c_out or self.c_out
        conv = nn.Conv2d(
            self.c_in, c_out, (height, width), stride or self.stride, padding, groups=self.groups, bias=False
        )
        return _ConvNorm(conv, nn.BatchNorm2d(c_out))

    def _identity(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module | None:
        """Return an identity branch, or None if shapes do not allow one."""
        return norm(self.c_out) if self.c_in == self.c_out and self.stride == 1 else None


@final
class RepVGGBlock(BranchedBlock):
    """The training form of RepVGG (Ding et al. 2021): a kxk, a 1x1 and an identity branch, each with its norm.

    The identity branch exists only if c_in == c_out and the stride is 1.
    """

    def _add_branches(self) -> None:
        self.dense = self._conv(self.kernel)
        self.point = self._conv(1)
        self.identity = self._identity()


@final
class MobileOneBlock(BranchedBlock):
    """The training form of MobileOne (Vasu et al. 2023): equal branches, a 1x1 and an identity, each with its norm.

    Depth-wise with kernel 3 it is the first half of MobileOne's layer; with kernel 1 it is the point-wise half. The 1x1
    branch exists only if the kernel is larger than 1, the identity branch only if c_in == c_out and the stride is 1.

    Args:
        c_in: input channels.
        c_out: output channels.
        branches: number of convolutions of size `kernel`, at least 1.
        options: those of `BranchedBlock`.

    Raises:
        ReparamError: there is no branch, the kernel is even, or the channels are not divisible by `groups`.
    """

    def __init__(self, c_in: int, c_out: int, *, branches: int = 4, **options: Any) -> None:
        super().__init__(c_in, c_out, **options)
        if branches < 1:
            raise ReparamError(f"a MobileOne block needs at least 1 branch, found {branches}")
        self.branches = nn.ModuleList(self._conv(self.kernel) for _ in range(branches))

    def _add_branches(self) -> None:
        self.scale = self._conv(1) if self.kernel > 1 else None
        self.identity = self._identity()


@final
class ACBlock(BranchedBlock):
    """The asymmetric block of ACNet (Ding et al. 2019): square, horizontal and vertical kernels, each with its norm."""

    def _add_branches(self) -> None:
        self.square = self._conv(self.kernel)
        self.flat = self._conv((1, self.kernel))
        self.upright = self._conv((self.kernel, 1))


@final
class DiverseBranchBlock(BranchedBlock):
    """The diverse branch block (Ding et al. 2021).

    A kxk, a 1x1, a 1x1-kxk and a 1x1-average branch, each convolution with its norm. Between the two layers of a serial
    branch the image is padded with the norm's output for zero, so that borders merge exactly.
    """

    def _add_branches(self) -> None:
        self.dense = self._conv(self.kernel)
        self.point = self._conv(1)
        self.squeeze = self._conv(1, self.c_in, stride=1)
        self.expand = self._conv(self.kernel, padded=False)
        self.before_average = self._conv(1, stride=1)
        self.average = nn.AvgPool2d(self.kernel, self.stride)
        self.average_norm = nn.BatchNorm2d(self.c_out)

    def total(self, x: Image) -> Image:
        """Return dense(x) + point(x) + expand(pad(squeeze(x))) + average_norm(average(pad(before_average(x))))."""
        serial = self.expand(self._pad(self.squeeze, x))
        return (
            self.dense(x) + self.point(x) + serial + self.average_norm(self.average(self._pad(self.before_average, x)))
        )

    def merged(self) -> Branch:
        """Return a kernel of the dense branch's size."""
        like = self.dense.conv.weight
        average = average_kernel(self.c_out, (self.kernel, self.kernel), self.groups, dtype=like.dtype).to(like.device)
        serial = merge_serial(self._folded(self.squeeze), self._folded(self.expand), groups=self.groups)
        pooled = fold_norm(average, None, self.average_norm)
        averaged = merge_serial(self._folded(self.before_average), pooled, groups=self.groups)
        return merge_parallel([self._folded(self.dense), self._folded(self.point), serial, averaged])

    def _pad(self, layer: "_ConvNorm", x: Image) -> Image:
        value = affine_of(layer.norm)[1].view(-1, 1, 1)
        return nn.functional.pad(layer(x) - value, [self.kernel // 2] * 4) + value


@final
class PlainBlock(BranchedBlock):
    """The block of PaS (Li et al. 2022, Eq. 6): a convolution with norm plus, if shapes allow, an identity shortcut.

    The shortcut spans this one convolution, so it merges into the kernel, w + I, and every layer can have its own
    width. Depth-wise or with kernel 1 it is one half of a `LightBlock`.
    """

    def _add_branches(self) -> None:
        self.dense = self._conv(self.kernel)
        self.identity = self._identity(lambda _: nn.Identity())


@final
class LightBlock(Block):
    """The light block of PaS (Li et al. 2022, Section 5.1): a depth-wise 3x3 and a 1x1, each a `PlainBlock`.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: stride of the depth-wise convolution.
        act: creates the activation after each of the two.
        mask: applied before the last activation; identity by default. The depth-wise half passes channels through and
            adds a bias, so its own mask (`block.depthwise.mask`) must equal that of the preceding block.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        stride: int = 1,
        act: Callable[[], nn.Module] = nn.ReLU,
        mask: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.depthwise = PlainBlock(c_in, c_in, stride=stride, groups=c_in, act=act)
        self.pointwise = PlainBlock(c_in, c_out, kernel=1, act=nn.Identity)
        self.mask = mask or nn.Identity()
        self.act = act()

    def forward(self, x: Image) -> Image:
        """Return act(mask(pointwise(depthwise(x))))."""
        return self.act(self.mask(self.pointwise(self.depthwise(x))))

    def deployed(self) -> nn.Sequential:
        """Return the block as two convolutions."""
        pointwise = self.pointwise.deployed()
        pointwise.mask, pointwise.act = copy.deepcopy(self.mask), copy.deepcopy(self.act)
        return nn.Sequential(OrderedDict(depthwise=self.depthwise.deployed(), pointwise=pointwise)).eval()

    def probe_shape(self) -> tuple[int, int, int]:
        """Return the probe shape of the depth-wise half."""
        return self.depthwise.probe_shape()


@final
class _ConvNorm(nn.Module):
    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Image) -> Image:
        return self.norm(self.conv(x))


Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def affine_of(norm: Norm) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a norm, see `norm_affine`.

    Raises:
        ReparamError: the norm has no running statistics, so it has no fixed scale to fold.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ReparamError(
            "a batch norm without running statistics depends on its batch and cannot be folded into a convolution"
        )
    return norm_affine(norm.running_mean, norm.running_var, eps=norm.eps, gamma=norm.weight, beta=norm.bias)


def fold_norm(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Fold a norm into the layer before it, see `fuse_conv_bn`; raises like `affine_of`."""
    return fuse_conv_bn(weight, bias, *affine_of(norm))
