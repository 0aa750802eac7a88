"""The kinds of block that networks are made of: how each is specified, and what it computes. Needs no torch.

| op | as deployed |
|---|---|
| `conv` | convolution, activation |
| `stem` | convolution, activation, 3x3 max-pool of stride 2 |
| `separable` | depthwise convolution, activation, 1x1 convolution |
| `irb` | inverted residual: 1x1 expansion, depthwise convolution, optional squeeze-and-excite, 1x1 projection |
| `fused_irb` | the same with one dense convolution in the place of expansion and depthwise convolution |
| `basic` | two convolutions of one size, of which the first has the stride (ResNet-18) |
| `bottleneck` | 1x1 reduction, convolution with the stride, 1x1 expansion (ResNet-50) |
| `tail` | 1x1 convolution, activation, global average pool, linear layer |
| `head` | global average pool, linear layer |

Every convolution but those of a squeeze-and-excite is trained with a norm, which is folded into it before it ships. The activation is
behind every convolution but the last 1x1 of a `separable`, `irb` or `fused_irb`. A `basic` or a `bottleneck` adds its input to what its
last convolution makes, as it is or through a 1x1 convolution, and the activation is behind the sum.
"""

from typing import NamedTuple

from latency.block import BlockSpec

Shape = tuple[int, int, int]
"""Channels, height, width."""


def conv(shape: Shape, c_out: int, *, kernel: int = 3, stride: int = 1, act: str = "relu", groups: int = 1) -> BlockSpec:
    """A convolution; `shape` is that of its input, here and below. Groups are an attribute where there are several."""
    grouped = {"groups": groups} if groups > 1 else {}
    return _spec("conv", shape, {"act": act, "kernel": kernel, "stride": stride, **grouped}, {"c_out": c_out})


def stem(shape: Shape, c_out: int, *, kernel: int = 7, act: str = "relu") -> BlockSpec:
    """The prologue of residual networks: it halves the image twice."""
    return _spec("stem", shape, {"act": act, "kernel": kernel}, {"c_out": c_out})


def separable(shape: Shape, c_out: int, *, kernel: int = 3, stride: int = 1, act: str = "relu") -> BlockSpec:
    """An inverted residual without expansion, as the first one of mobile networks is. Where shapes are equal its input is added."""
    residual = stride == 1 and shape[0] == c_out
    return _spec("separable", shape, {"act": act, "kernel": kernel, "residual": int(residual), "stride": stride}, {"c_out": c_out})


def residual(shape: Shape, c_out: int, *, hidden: int, stride: int = 1, act: str = "relu", bottleneck: bool = False) -> BlockSpec:
    """A `basic` or a `bottleneck` of 3x3 convolutions. Where shapes differ, the shortcut is a 1x1 convolution."""
    same = stride == 1 and shape[0] == c_out
    attrs: dict[str, int | str] = {"act": act, "kernel": 3, "shortcut": "identity" if same else "conv", "stride": stride}
    return _spec("bottleneck" if bottleneck else "basic", shape, attrs, {"hidden": hidden, "c_out": c_out})


def inverted_residual(
    shape: Shape, c_out: int, *, hidden: int, kernel: int = 3, stride: int = 1, act: str = "relu", se: bool = False, fused: bool = False
) -> BlockSpec:
    """An `irb` or a `fused_irb`. Its input is added to its output where their shapes are equal.

    That it is, is an attribute: a block with the sum and one without are of two families, whatever their widths.
    """
    residual = stride == 1 and shape[0] == c_out
    attrs: dict[str, int | str] = {"act": act, "kernel": kernel, "residual": int(residual), "se": int(se), "stride": stride}
    return _spec("fused_irb" if fused else "irb", shape, attrs, {"hidden": hidden, "c_out": c_out})


def tail(shape: Shape, classes: int, *, hidden: int, act: str = "relu") -> BlockSpec:
    """The epilogue of mobile networks: `hidden` channels, pooled, classified."""
    return _spec("tail", shape, {"act": act}, {"hidden": hidden, "c_out": classes})


def head(shape: Shape, classes: int) -> BlockSpec:
    """A classifier without a layer of its own before the pool."""
    return _spec("head", shape, {}, {"c_out": classes})


def _spec(op: str, shape: Shape, attrs: dict[str, int | str], widths: dict[str, int]) -> BlockSpec:
    c_in, height, width = shape
    return BlockSpec.of(op, attrs={**attrs, "h": height, "w": width}, widths={"c_in": c_in, **widths})


def output_shape(spec: BlockSpec) -> Shape:
    """Shape that a block makes of its input's; of a classifier (classes, 1, 1)."""
    attrs = dict(spec.attrs)
    if spec.op in ("head", "tail"):
        return spec.width("c_out"), 1, 1
    stride = 4 if spec.op == "stem" else int(attrs["stride"])
    return spec.width("c_out"), -(-int(attrs["h"]) // stride), -(-int(attrs["w"]) // stride)


def keeps_width(spec: BlockSpec) -> bool:
    """Whether the block adds its input as it is, so that it has as many output channels as input channels."""
    return bool(dict(spec.attrs).get("residual")) or dict(spec.attrs).get("shortcut") == "identity"


def se_width(c_in: int) -> int:
    """Channels between the two convolutions of a squeeze-and-excite: a quarter of the block's input, whatever its expansion.

    NVIDIA's GPUNet reduces the hidden width by 0.25 over the expansion, which is this; so it stays while the hidden width is pruned.
    """
    return max(1, round(0.25 * c_in))


class Counts(NamedTuple):
    """Size of a block or a network."""

    params: int
    """weights and biases, with the scale and shift of norms, without running statistics"""
    macs: int
    """multiply-accumulates of convolutions and linear layers in one inference"""


def counts(spec: BlockSpec, *, deployed: bool = True) -> Counts:
    """Size of a block, in the form that ships or in the plain training form: one norm a convolution."""
    params = macs = 0
    for part in _convolutions(spec):
        weights = part.kernel**2 * part.c_in * part.c_out // part.groups
        params += weights + part.c_out * (1 if deployed or not part.normed else 2)
        macs += weights * part.pixels
    return Counts(params, macs)


def repvgg_counts(spec: BlockSpec) -> Counts:
    """Size of a block where a `conv` is trained as a RepVGG block: with a 1x1 branch and, where shapes allow, the norm of an identity."""
    found = counts(spec, deployed=False)
    if spec.op != "conv":
        return found
    c_in, c_out = spec.width("c_in"), spec.width("c_out")
    point = counts(BlockSpec.of("conv", attrs={**dict(spec.attrs), "kernel": 1}, widths=dict(spec.widths)), deployed=False)
    identity_norm = 2 * c_out if c_in == c_out and spec.attr("stride") == 1 else 0
    return Counts(found.params + point.params + identity_norm, found.macs + point.macs)


class _Convolution(NamedTuple):
    """A convolution with bias or norm; a linear layer is one at a single pixel."""

    c_in: int
    c_out: int
    pixels: int
    kernel: int = 1
    groups: int = 1
    normed: bool = True


def _convolutions(spec: BlockSpec) -> list[_Convolution]:
    c_in, c_out, attrs = spec.width("c_in"), spec.width("c_out"), dict(spec.attrs)
    before, (_, height, width) = int(attrs["h"]) * int(attrs["w"]), output_shape(spec)
    after = height * width
    match spec.op:
        case "conv":
            return [_Convolution(c_in, c_out, after, int(attrs["kernel"]), groups=int(attrs.get("groups", 1)))]
        case "stem":
            return [_Convolution(c_in, c_out, -(-int(attrs["h"]) // 2) * -(-int(attrs["w"]) // 2), int(attrs["kernel"]))]
        case "separable":
            return [_Convolution(c_in, c_in, after, int(attrs["kernel"]), groups=c_in), _Convolution(c_in, c_out, after)]
        case "basic" | "bottleneck":
            hidden, kernel = spec.width("hidden"), int(attrs["kernel"])
            if spec.op == "basic":
                body = [_Convolution(c_in, hidden, after, kernel), _Convolution(hidden, c_out, after, kernel)]
            else:
                body = [
                    _Convolution(c_in, hidden, before),
                    _Convolution(hidden, hidden, after, kernel),
                    _Convolution(hidden, c_out, after),
                ]
            return [*body, *(() if attrs["shortcut"] == "identity" else [_Convolution(c_in, c_out, after)])]
        case "head":
            return [_Convolution(c_in, c_out, 1, normed=False)]
        case "tail":
            hidden = spec.width("hidden")
            return [_Convolution(c_in, hidden, before), _Convolution(hidden, c_out, 1, normed=False)]
        case "irb" | "fused_irb":
            hidden, kernel, reduced = spec.width("hidden"), int(attrs["kernel"]), se_width(c_in)
            if spec.op == "fused_irb":
                first = [_Convolution(c_in, hidden, after, kernel)]
            else:
                first = [_Convolution(c_in, hidden, before), _Convolution(hidden, hidden, after, kernel, groups=hidden)]
            gate = [_Convolution(hidden, reduced, 1, normed=False), _Convolution(reduced, hidden, 1, normed=False)]
            return [*first, *(gate if attrs["se"] else ()), _Convolution(hidden, c_out, after)]
    raise AssertionError(f"no op {spec.op!r}")
