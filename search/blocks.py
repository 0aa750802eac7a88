"""Block kinds as modules, in training form and in deployed form, where every norm is folded into its convolution.

Both forms of a block have the same structure and names, so `reparam.fuse` of the training form has the weights of the
deployed one.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, final

from torch import nn

from latency import BlockSpec
from reparam.blocks import Image, RepVGGBlock
from search import ops

NORM_EPS = 1e-3
"""Epsilon of every norm, as in GPUNet."""


def trained(spec: BlockSpec) -> nn.Module:
    """Return a block in training form, with a norm after every convolution.

    Weights are drawn from torch's global random state.
    """
    return _block(spec, normed=True, se_width=ops.se_width(spec.width("c_in")))


def trained_as_repvgg(spec: BlockSpec) -> nn.Module:
    """Do the same as `trained`, but return a `conv` as a RepVGG block.

    Its norms have torch's default epsilon, as in its paper.
    """
    if spec.op != "conv":
        return trained(spec)
    kernel, stride, groups = (int(dict(spec.attrs).get(name, 1)) for name in ("kernel", "stride", "groups"))
    act = partial(_activation, str(spec.attr("act")))
    return RepVGGBlock(spec.width("c_in"), spec.width("c_out"), kernel=kernel, stride=stride, groups=groups, act=act)


def deployed(spec: BlockSpec, *, se_width: int | None = None) -> nn.Module:
    """Return a block in deployed form.

    Args:
        spec: the block.
        se_width: channels inside a squeeze-and-excite; None means `ops.se_width`.
    """
    return _block(spec, normed=False, se_width=se_width or ops.se_width(spec.width("c_in")))


def serial(network: Sequence[BlockSpec]) -> nn.Sequential:
    """Return blocks in deployed form as one sequence."""
    return nn.Sequential(*map(deployed, network))


def pooled_linear(c_in: int, classes: int) -> nn.Sequential:
    """Return global average pooling and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


@final
class InvertedResidual(nn.Module):
    """x + body(x), or body(x): an `irb`, `fused_irb` or `separable` of `search.ops`.

    Args:
        spec: the block.
        normed: whether every convolution has a norm instead of a bias.
        se_width: channels inside the squeeze-and-excite, if there is one.
    """

    def __init__(self, spec: BlockSpec, *, normed: bool, se_width: int) -> None:
        super().__init__()
        c_in, c_out = spec.width("c_in"), spec.width("c_out")
        hidden = dict(spec.widths).get("hidden", c_in)
        kernel, stride, act = int(spec.attr("kernel")), int(spec.attr("stride")), str(spec.attr("act"))
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.op == "fused_irb":
            parts["expand"] = _conv(c_in, hidden, normed=normed, kernel=kernel, stride=stride, act=act)
        else:
            if spec.op == "irb":
                parts["expand"] = _conv(c_in, hidden, normed=normed, act=act)
            parts["depthwise"] = _conv(
                hidden, hidden, normed=normed, kernel=kernel, stride=stride, groups=hidden, act=act
            )
        if dict(spec.attrs).get("se"):
            parts["se"] = SqueezeExcite(hidden, se_width, act=act)
        parts["project"] = _conv(hidden, c_out, normed=normed)
        self.body = nn.Sequential(parts)
        self.residual = bool(spec.attr("residual"))

    def forward(self, x: Image) -> Image:
        """Map float [batch, c_in, h, w] to [batch, c_out, h / stride, w / stride]."""
        return x + self.body(x) if self.residual else self.body(x)


@final
class Residual(nn.Module):
    """act(shortcut(x) + body(x)): a `basic` or `bottleneck` of `search.ops` (He et al. 2016).

    Args:
        spec: the block.
        normed: whether every convolution has a norm instead of a bias.
    """

    def __init__(self, spec: BlockSpec, *, normed: bool) -> None:
        super().__init__()
        c_in, hidden, c_out = (spec.width(name) for name in ("c_in", "hidden", "c_out"))
        kernel, stride, act = int(spec.attr("kernel")), int(spec.attr("stride")), str(spec.attr("act"))
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.op == "basic":
            parts["first"] = _conv(c_in, hidden, normed=normed, kernel=kernel, stride=stride, act=act)
            parts["second"] = _conv(hidden, c_out, normed=normed, kernel=kernel)
        else:
            parts["reduce"] = _conv(c_in, hidden, normed=normed, act=act)
            parts["middle"] = _conv(hidden, hidden, normed=normed, kernel=kernel, stride=stride, act=act)
            parts["expand"] = _conv(hidden, c_out, normed=normed)
        self.body = nn.Sequential(parts)
        is_identity = spec.attr("shortcut") == "identity"
        self.shortcut = nn.Identity() if is_identity else _conv(c_in, c_out, normed=normed, stride=stride)
        self.act = _activation(act)

    def forward(self, x: Image) -> Image:
        """Map float [batch, c_in, h, w] to [batch, c_out, h / stride, w / stride]."""
        return self.act(self.shortcut(x) + self.body(x))


@final
class Reduction(nn.Module):
    """shortcut(x) + body(x): a `reduction` of `search.ops`.

    Args:
        spec: the block.
        normed: whether the convolutions of the body have a norm instead of a bias.
    """

    def __init__(self, spec: BlockSpec, *, normed: bool) -> None:
        super().__init__()
        c_in, c_out, kernel, act = (
            spec.width("c_in"),
            spec.width("c_out"),
            int(spec.attr("kernel")),
            str(spec.attr("act")),
        )
        self.body = nn.Sequential(
            _activation(act),
            _conv(c_in, c_out, normed=normed, kernel=kernel, stride=2),
            _activation(act),
            _conv(c_out, c_out, normed=normed, kernel=kernel),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Image) -> Image:
        """Map float [batch, c_in, h, w] to [batch, c_out, h / 2, w / 2]."""
        return self.shortcut(x) + self.body(x)


@final
class Sum(nn.Module):
    """The sum of two images."""

    def forward(self, a: Image, b: Image) -> Image:
        """Add two float [batch, channels, h, w]."""
        return a + b


@final
class SqueezeExcite(nn.Module):
    """Scales every channel by a factor in (0, 1) that depends on the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, reduced: int, *, act: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.act = _activation(act)
        self.expand = nn.Conv2d(reduced, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Image) -> Image:
        """Map float [batch, channels, h, w] to the same shape."""
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


def _block(spec: BlockSpec, *, normed: bool, se_width: int) -> nn.Module:
    c_in = spec.width("c_in")
    c_out, act = dict(spec.widths).get("c_out", c_in), str(dict(spec.attrs).get("act"))
    match spec.op:
        case "conv" | "depthwise":
            groups = c_in if spec.op == "depthwise" else int(dict(spec.attrs).get("groups", 1))
            conv = nn.Conv2d(c_in, c_out, **_geometry(spec), groups=groups, bias=not normed)
            return _followed(conv, normed=normed, act=act)
        case "conv_transpose":
            output_padding = ops.Geometry.of(dict(spec.attrs)).out_pad
            conv = nn.ConvTranspose2d(c_in, c_out, **_geometry(spec), output_padding=output_padding, bias=not normed)
            return _followed(conv, normed=normed, act=act)
        case "linear":
            positions = int(spec.attr("h")) * int(spec.attr("w"))
            layout = nn.Flatten() if positions == 1 else _FeaturesLast()
            return nn.Sequential(layout, nn.Linear(c_in, c_out), _activation(act))
        case "stem":
            conv = _conv(c_in, c_out, normed=normed, kernel=int(spec.attr("kernel")), stride=2, act=act)
            conv.add_module("pool", nn.MaxPool2d(3, 2, padding=1))
            return conv
        case "basic" | "bottleneck":
            return Residual(spec, normed=normed)
        case "irb" | "fused_irb" | "separable":
            return InvertedResidual(spec, normed=normed, se_width=se_width)
        case "tail":
            hidden = spec.width("hidden")
            return nn.Sequential(_conv(c_in, hidden, normed=normed, act=act), pooled_linear(hidden, c_out))
        case "head":
            return pooled_linear(c_in, c_out)
        case "preact":
            conv = _conv(c_in, c_out, normed=normed, kernel=int(spec.attr("kernel")))
            return nn.Sequential(OrderedDict(act=_activation(act), body=conv))
        case "avg_pool":
            kernel = int(spec.attr("kernel"))
            return nn.AvgPool2d(kernel, 1, kernel // 2, count_include_pad=False)
        case "add":
            return Sum()
        case "reduction":
            return Reduction(spec, normed=normed)
        case "norm_head":
            return nn.Sequential(nn.BatchNorm2d(c_in, eps=NORM_EPS), _activation(act), pooled_linear(c_in, c_out))
        case "mlp_head":
            hidden = spec.width("hidden")
            return nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(c_in, hidden, bias=False),
                _activation(act),
                nn.Linear(hidden, c_out),
            )
        case _:
            raise AssertionError(f"no op {spec.op!r}")


def _geometry(spec: BlockSpec) -> dict[str, Any]:
    """Return the arguments of a convolution's geometry."""
    geometry = ops.Geometry.of(dict(spec.attrs))
    return {
        "kernel_size": geometry.kernel,
        "stride": geometry.stride,
        "padding": geometry.pad,
        "dilation": geometry.dilation,
    }


def _conv(
    c_in: int, c_out: int, *, normed: bool, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=not normed)
    return _followed(conv, normed=normed, act=act)


def _followed(conv: nn.Conv2d | nn.ConvTranspose2d, *, normed: bool, act: str | None) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = conv
    if normed:
        parts["norm"] = nn.BatchNorm2d(conv.out_channels, eps=NORM_EPS)
    if act not in (None, "none"):
        parts["act"] = _activation(act)
    return nn.Sequential(parts)


@final
class _FeaturesLast(nn.Module):
    """Maps [batch, features, positions, 1] to [batch, positions, features]."""

    def forward(self, x: Image) -> Image:
        return x.flatten(2).transpose(1, 2)


def _activation(name: str) -> nn.Module:
    match name:
        case "relu":
            return nn.ReLU()
        case "relu6":
            return nn.ReLU6()
        case "swish":
            return nn.SiLU()
        case "none":
            return nn.Identity()
        case "hardswish":
            return nn.Hardswish()
        case "sigmoid":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()
        case "gelu":
            return nn.GELU()
        case _:
            raise AssertionError(f"no activation {name!r}")
