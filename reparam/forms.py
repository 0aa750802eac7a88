"""Values of a network as convolutions of other values, with their sums and compositions where those are exact.

A linear layer is a convolution with no spatial dimensions. A norm, a scaling and an identity are depth-wise
convolutions of size 1. Kernels are computed lazily, in float64.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from reparam.algebra import (
    Branch,
    dilate_kernel,
    fuse_bn_conv,
    fuse_conv_bn,
    fuse_transposed_conv_bn,
    merge_parallel,
    merge_serial,
    regroup_kernel,
)

Sides = tuple[int, ...]

_MODULES: dict[tuple[bool, int], Callable[..., nn.Module]] = {
    (False, 0): nn.Linear,
    (False, 1): nn.Conv1d,
    (False, 2): nn.Conv2d,
    (False, 3): nn.Conv3d,
    (True, 1): nn.ConvTranspose1d,
    (True, 2): nn.ConvTranspose2d,
    (True, 3): nn.ConvTranspose3d,
}


@dataclass(frozen=True, kw_only=True)
class LinearForm:
    """A value as a convolution of `source` over the dimensions after the channels' one, `dim`, apart from `moves`."""

    source: fx.Node
    dim: int
    c_in: int
    c_out: int
    groups: int = 1
    size: Sides = ()
    stride: Sides = ()
    padding: Sides = ()
    dilation: Sides = ()
    transposed: bool = False
    output_padding: Sides = ()
    absorbed: frozenset[fx.Node]
    """nodes that the convolution replaces, including the value's own"""
    branch: Callable[[], Branch]
    """computes kernel and bias in float64"""
    moves: frozenset[fx.Node] = frozenset()
    """absorbed nodes that only move values, such as views and reflection padding; they commute with a scaling and stay
    in the network"""

    @property
    def is_scale(self) -> bool:
        """Whether it multiplies each channel by a constant and adds a constant."""
        return (
            self.groups == self.c_in == self.c_out and self.is_point and not self.transposed and set(self.stride) <= {1}
        )

    @property
    def is_point(self) -> bool:
        """Whether it has size 1 and no padding."""
        return math.prod(self.size) == 1 and not any(self.padding)

    @property
    def weights(self) -> int:
        """Number of elements of the kernel."""
        return self.c_out * self.c_in // self.groups * math.prod(self.size)

    def macs(self, shape: tuple[int, ...]) -> int:
        """Return the multiply-accumulates for an output shape (for a transposed convolution, an input shape)."""
        return math.prod(shape) // shape[self.dim] * self.weights

    def same_geometry(self, other: "LinearForm") -> bool:
        """Return whether both forms differ only in kernel and bias."""
        return all(getattr(self, name) == getattr(other, name) for name in _GEOMETRY)

    def module(self, *, trained: bool) -> nn.Module:
        """Return a float64 layer that computes the form."""
        kind = _MODULES[self.transposed, len(self.size)]
        if not self.size:
            layer = kind(self.c_in, self.c_out, device="meta")
        else:
            options: dict[str, int | Sides] = {
                "stride": self.stride,
                "padding": self.padding,
                "dilation": self.dilation,
                "groups": self.groups,
            }
            if self.transposed:
                options["output_padding"] = self.output_padding
            layer = kind(self.c_in, self.c_out, self.size, **options, device="meta")
        layer.weight, layer.bias = (nn.Parameter(tensor.detach().clone(), trained) for tensor in self.branch())
        return layer.eval()


_GEOMETRY = ("dim", "c_in", "c_out", "groups", "size", "stride", "padding", "dilation", "transposed", "output_padding")


def depthwise(
    node: fx.Node, source: fx.Node, dim: int, branch: Branch, *, stride: Sides = (), padding: Sides = ()
) -> LinearForm:
    """Return a depth-wise convolution; stride 1 and no padding by default."""
    channels, _, *size = branch[0].shape
    ones = (1,) * len(size)
    return LinearForm(
        source=source,
        dim=dim,
        c_in=channels,
        c_out=channels,
        groups=channels,
        size=tuple(size),
        stride=stride or ones,
        padding=padding or (0,) * len(size),
        dilation=ones,
        absorbed=frozenset({node}),
        branch=lambda: branch,
    )


def affine(node: fx.Node, source: fx.Node, dim: int, scale: Tensor, shift: Tensor, rank: int) -> LinearForm:
    """Return the form of `scale * source + shift`, with one scale and one shift per channel."""
    return depthwise(node, source, dim, (scale.reshape(-1, 1, *[1] * (rank - 1 - dim)), shift))


def identity(node: fx.Node, dim: int, shape: tuple[int, ...]) -> LinearForm:
    """Return the form of a value as itself."""
    ones = torch.ones(shape[dim], dtype=torch.float64)
    return replace(affine(node, node, dim, ones, torch.zeros_like(ones), len(shape)), absorbed=frozenset())


def serial(first: LinearForm, second: LinearForm) -> LinearForm | str:
    """Compose two forms, where `second` reads the value of `first`; return the reason if that is not exact.

    One of the two must be of size 1, and the second must not pad unless the first maps zero to zero.
    """
    if not first.absorbed and first.is_scale and first.source is second.source and first.dim == second.dim:
        return second
    if first.dim != second.dim:
        return f"one is over dimension {first.dim}, the other over {second.dim}"
    compose = functools.partial(
        replace,
        moves=first.moves | second.moves,
        source=first.source,
        c_in=first.c_in,
        absorbed=first.absorbed | second.absorbed,
    )
    if first.transposed or second.transposed:
        if second.transposed or not second.is_scale:
            return "a transposed convolution can absorb only a following norm"
        return compose(first, branch=lazy_branch(_scaled_transposed, first, second))
    if second.is_scale:
        return compose(first, branch=lazy_branch(_composed, first, second, first.groups))
    if any(second.padding) and (first.is_scale or first.is_point) and bool(first.branch()[1].any()):
        return "the second pads with zeros, and the first does not map zero to zero"
    if first.is_scale:
        return compose(second, branch=lazy_branch(_composed, first, second, second.groups))
    if first.moves:
        return "only a scaling commutes with a view"
    groups = math.gcd(first.groups, second.groups)
    if second.is_point:
        stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
        return compose(
            first,
            c_out=second.c_out,
            stride=stride,
            groups=groups,
            branch=lazy_branch(_composed, first, second, groups),
        )
    if not first.is_point or not set(first.stride) <= {1}:
        return "neither is a 1x1 convolution of stride 1"
    return compose(second, groups=groups, branch=lazy_branch(_composed, first, second, groups))


def lazy_branch(compute: Callable[..., Branch], *args: object) -> Callable[[], Branch]:
    """Return a function that computes a branch lazily and only once."""
    return functools.cache(functools.partial(compute, *args))


def _composed(first: LinearForm, second: LinearForm, groups: int) -> Branch:
    (inner, carried), (outer, bias) = first.branch(), second.branch()
    if second.is_scale:
        return fuse_conv_bn(inner, carried, outer.flatten(), bias)
    if first.is_scale:
        return fuse_bn_conv(outer, bias, inner.flatten(), carried, groups=groups)
    inner, outer = regroup_kernel(inner, first.groups, groups), regroup_kernel(outer, second.groups, groups)
    return merge_serial((inner, carried), (outer, bias), groups=groups)


def _scaled_transposed(first: LinearForm, second: LinearForm) -> Branch:
    scale, shift = second.branch()
    return fuse_transposed_conv_bn(*first.branch(), scale.flatten(), shift, groups=first.groups)


def parallel(first: LinearForm, second: LinearForm, node: fx.Node) -> LinearForm | str:
    """Add two forms over the same source; return the reason if that is not exact."""
    if first.moves or second.moves:
        return "one of them is behind a view or a padding"
    if first.transposed or second.transposed:
        return "a transposed convolution cannot be summed with others"
    if (first.c_in, first.c_out, first.stride) != (second.c_in, second.c_out, second.stride):
        return f"their strides are {first.stride} and {second.stride}"
    dilation = tuple(
        a if a == b or k == 1 else (b if j == 1 else 1)
        for a, b, j, k in zip(first.dilation, second.dilation, first.size, second.size, strict=True)
    )
    a, b = _dilated(first, dilation), _dilated(second, dilation)
    margins = [
        tuple(2 * p - d * (k - 1) for p, d, k in zip(form.padding, dilation, form.size, strict=True)) for form in (a, b)
    ]
    if margins[0] != margins[1] or any((i - j) % 2 for i, j in zip(a.size, b.size, strict=True)):
        return "they read different pixels at the border"
    groups = math.gcd(a.groups, b.groups)
    return replace(
        a,
        groups=groups,
        size=tuple(map(max, a.size, b.size)),
        padding=tuple(map(max, a.padding, b.padding)),
        absorbed=a.absorbed | b.absorbed | {node},
        branch=lazy_branch(_summed, a, b, groups),
    )


def _dilated(form: LinearForm, dilation: Sides) -> LinearForm:
    """Rewrite a form for another dilation, which in each dimension is 1, the form's own, or arbitrary for size 1."""
    steps = tuple(
        1 if k == 1 or old == new else old for k, old, new in zip(form.size, form.dilation, dilation, strict=True)
    )
    size = tuple(step * (k - 1) + 1 for step, k in zip(steps, form.size, strict=True))
    if size == form.size:
        return replace(form, dilation=dilation)
    return replace(form, size=size, dilation=dilation, branch=lazy_branch(_spread, form, steps))


def _spread(form: LinearForm, steps: Sides) -> Branch:
    weight, bias = form.branch()
    return dilate_kernel(weight, steps), bias


def _summed(first: LinearForm, second: LinearForm, groups: int) -> Branch:
    branches: list[Branch] = []
    for form in (first, second):
        weight, bias = form.branch()
        branches.append((regroup_kernel(weight, form.groups, groups), bias))
    return merge_parallel(branches)
