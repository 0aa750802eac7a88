"""Block kinds: how each is specified, and what it computes. Needs no torch.

| op | as deployed |
|---|---|
| `conv` | convolution, activation |
| `depthwise` | depth-wise convolution, activation; it has one width, `c_in` |
| `conv_transpose` | transposed convolution, activation |
| `linear` | linear layer at each of h * w positions, activation |
| `stem` | convolution, activation, 3x3 max-pool of stride 2 |
| `separable` | depthwise convolution, activation, 1x1 convolution |
| `irb` | inverted residual: 1x1 expansion, depthwise convolution, optional squeeze-and-excite, 1x1 projection |
| `fused_irb` | the same with one dense convolution instead of expansion and depthwise convolution |
| `basic` | two convolutions of the same size; the first has the stride (ResNet-18) |
| `bottleneck` | 1x1 reduction, convolution with the stride, 1x1 expansion (ResNet-50) |
| `tail` | 1x1 convolution, activation, global average pool, linear layer |
| `head` | global average pool, linear layer |
| `preact` | activation, convolution |
| `avg_pool` | average pool of stride 1 that does not count its padding; it has one width, `c_in` |
| `add` | sum of two input images; it has one width, `c_in` |
| `reduction` | activation and convolution, twice, first with the stride; plus a 1x1 convolution of the pooled input |
| `norm_head` | norm, activation, global average pool, linear layer |
| `mlp_head` | global average pool, linear layer without bias, activation, linear layer |

Every convolution except those of a squeeze-and-excite is trained with a norm, which is folded into it for deployment.
An activation follows every convolution except the last 1x1 of a `separable`, `irb` or `fused_irb`. A `basic` or
`bottleneck` adds its input, directly or through a 1x1 convolution, to the output of its last convolution, and applies
the activation to the sum.
"""

from collections.abc import Mapping
from typing import NamedTuple

from latency.block import BlockSpec

Shape = tuple[int, int, int]
"""Channels, height, width."""


def conv(
    shape: Shape, c_out: int, *, kernel: int = 3, stride: int = 1, act: str = "relu", groups: int = 1
) -> BlockSpec:
    """Return a convolution; `shape` is its input's, here and below.

    `groups` becomes an attribute only if there are several.
    """
    grouped = {"groups": groups} if groups > 1 else {}
    return _spec("conv", shape, {"act": act, "kernel": kernel, "stride": stride, **grouped}, {"c_out": c_out})


def stem(shape: Shape, c_out: int, *, kernel: int = 7, act: str = "relu") -> BlockSpec:
    """Return the stem of residual networks, which halves the image twice."""
    return _spec("stem", shape, {"act": act, "kernel": kernel}, {"c_out": c_out})


def separable(shape: Shape, c_out: int, *, kernel: int = 3, stride: int = 1, act: str = "relu") -> BlockSpec:
    """Return an inverted residual without expansion, as mobile networks start with.

    It adds its input if shapes match.
    """
    residual = stride == 1 and shape[0] == c_out
    return _spec(
        "separable",
        shape,
        {"act": act, "kernel": kernel, "residual": int(residual), "stride": stride},
        {"c_out": c_out},
    )


def residual(
    shape: Shape, c_out: int, *, hidden: int, stride: int = 1, act: str = "relu", bottleneck: bool = False
) -> BlockSpec:
    """Return a `basic` or `bottleneck` of 3x3 convolutions. The shortcut is a 1x1 convolution unless shapes match."""
    is_identity = stride == 1 and shape[0] == c_out
    attrs: dict[str, int | str] = {
        "act": act,
        "kernel": 3,
        "shortcut": "identity" if is_identity else "conv",
        "stride": stride,
    }
    return _spec("bottleneck" if bottleneck else "basic", shape, attrs, {"hidden": hidden, "c_out": c_out})


def joined(spec: BlockSpec) -> BlockSpec:
    """Return a residual block with a 1x1 convolution as its shortcut for any widths; other blocks unchanged."""
    attrs = dict(spec.attrs)
    return (
        BlockSpec.of(spec.op, attrs={**attrs, "shortcut": "conv"}, widths=dict(spec.widths))
        if "shortcut" in attrs
        else spec
    )


def inverted_residual(
    shape: Shape,
    c_out: int,
    *,
    hidden: int,
    kernel: int = 3,
    stride: int = 1,
    act: str = "relu",
    se: bool = False,
    fused: bool = False,
) -> BlockSpec:
    """Return an `irb` or `fused_irb`. It adds its input to its output if their shapes match.

    The sum is an attribute, so blocks with and without it belong to different families.
    """
    residual = stride == 1 and shape[0] == c_out
    attrs: dict[str, int | str] = {
        "act": act,
        "kernel": kernel,
        "residual": int(residual),
        "se": int(se),
        "stride": stride,
    }
    return _spec("fused_irb" if fused else "irb", shape, attrs, {"hidden": hidden, "c_out": c_out})


def tail(shape: Shape, classes: int, *, hidden: int, act: str = "relu") -> BlockSpec:
    """Return the tail of mobile networks: 1x1 convolution to `hidden` channels, pooling, classifier."""
    return _spec("tail", shape, {"act": act}, {"hidden": hidden, "c_out": classes})


def head(shape: Shape, classes: int) -> BlockSpec:
    """Return a classifier without a layer before the pool."""
    return _spec("head", shape, {}, {"c_out": classes})


def preact(shape: Shape, c_out: int, *, kernel: int, act: str = "relu") -> BlockSpec:
    """Return an activation followed by a convolution of stride 1, as in the cells of NAS-Bench-201."""
    return _spec("preact", shape, {"act": act, "kernel": kernel}, {"c_out": c_out})


def avg_pool(shape: Shape, *, kernel: int = 3) -> BlockSpec:
    """Return an average pool of stride 1."""
    return _spec("avg_pool", shape, {"kernel": kernel}, {})


def add(shape: Shape) -> BlockSpec:
    """Return the sum of two images of this shape."""
    return _spec("add", shape, {}, {})


def reduction(shape: Shape, c_out: int, *, act: str = "relu") -> BlockSpec:
    """Return the residual block of stride 2 between the stages of NAS-Bench-201.

    Its shortcut has neither norm nor bias.
    """
    return _spec("reduction", shape, {"act": act, "kernel": 3, "stride": 2}, {"c_out": c_out})


def norm_head(shape: Shape, classes: int, *, act: str = "relu") -> BlockSpec:
    """Return a classifier with a norm after a sum; it cannot be folded, so it ships."""
    return _spec("norm_head", shape, {"act": act}, {"c_out": classes})


def mlp_head(shape: Shape, classes: int, *, hidden: int, act: str = "relu") -> BlockSpec:
    """Return a classifier of two linear layers, as in GPUNet's distilled networks."""
    return _spec("mlp_head", shape, {"act": act}, {"hidden": hidden, "c_out": classes})


def _spec(op: str, shape: Shape, attrs: dict[str, int | str], widths: dict[str, int]) -> BlockSpec:
    c_in, height, width = shape
    return BlockSpec.of(op, attrs={**attrs, "h": height, "w": width}, widths={"c_in": c_in, **widths})


def output_shape(spec: BlockSpec) -> Shape:
    """Return the output shape of a block; (classes, 1, 1) for a classifier."""
    attrs = dict(spec.attrs)
    if spec.op in ("head", "tail", "norm_head", "mlp_head"):
        return spec.width("c_out"), 1, 1
    size, widths = (int(attrs["h"]), int(attrs["w"])), dict(spec.widths)
    if spec.op in ("conv", "depthwise", "conv_transpose", "linear"):
        if spec.op != "linear":
            size = Geometry.of(attrs).output(size, transposed=spec.op == "conv_transpose")
        return widths.get("c_out", widths["c_in"]), *size
    stride = 4 if spec.op == "stem" else int(attrs.get("stride", 1))
    return widths.get("c_out", widths["c_in"]), -(-size[0] // stride), -(-size[1] // stride)


class Geometry(NamedTuple):
    """Kernel, stride and padding of a convolution, each as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: int = 1
    out_pad: int = 0
    """additional output rows and columns of a transposed convolution"""

    def attrs(self) -> dict[str, int]:
        """Return block attributes.

        Kernel and stride, and any deviation from a square kernel and stride with padding kernel // 2.
        """
        attrs = {
            "kernel": self.kernel[0],
            "stride": self.stride[0],
            "kernel_w": self.kernel[1],
            "stride_w": self.stride[1],
        }
        attrs |= {"pad": self.pad[0], "pad_w": self.pad[1], "dilation": self.dilation, "out_pad": self.out_pad}
        usual = Geometry.of({"kernel": self.kernel[0], "stride": self.stride[0]})
        defaults = {
            "kernel_w": self.kernel[0],
            "stride_w": self.stride[0],
            "pad": usual.pad[0],
            "pad_w": self.pad[0],
            "dilation": 1,
            "out_pad": 0,
        }
        return {name: value for name, value in attrs.items() if defaults.get(name) != value}

    @classmethod
    def of(cls, attrs: Mapping[str, int | str]) -> "Geometry":
        """Invert `attrs`."""
        kernel, stride = int(attrs.get("kernel", 1)), int(attrs.get("stride", 1))
        pad = int(attrs.get("pad", kernel // 2))
        return cls(
            kernel=(kernel, int(attrs.get("kernel_w", kernel))),
            stride=(stride, int(attrs.get("stride_w", stride))),
            pad=(pad, int(attrs.get("pad_w", pad))),
            dilation=int(attrs.get("dilation", 1)),
            out_pad=int(attrs.get("out_pad", 0)),
        )

    def output(self, size: tuple[int, int], *, transposed: bool = False) -> tuple[int, int]:
        """Return output height and width for an input's height and width."""
        extents = [self.dilation * (kernel - 1) for kernel in self.kernel]
        sides = zip(size, self.stride, self.pad, extents, strict=True)
        if transposed:
            height, width = (
                (side - 1) * stride - 2 * pad + extent + self.out_pad + 1 for side, stride, pad, extent in sides
            )
        else:
            height, width = ((side + 2 * pad - extent - 1) // stride + 1 for side, stride, pad, extent in sides)
        return height, width


def layer(
    op: str, shape: Shape, c_out: int | None, geometry: Geometry | None = None, *, act: str = "none", groups: int = 1
) -> BlockSpec:
    """Return a single layer of any network: a `conv`, `depthwise`, `conv_transpose` or `linear`.

    Args:
        op: the kind of layer.
        shape: shape of its input; (features, positions, 1) for a linear layer.
        c_out: output channels; None if always equal to the input channels, as in a depth-wise convolution.
        geometry: geometry of a convolution.
        act: activation after it, or `none`.
        groups: groups of a convolution that is not depth-wise.
    """
    attrs: dict[str, int | str] = {
        "act": act,
        **(geometry.attrs() if geometry else {}),
        **({"groups": groups} if groups > 1 else {}),
    }
    return _spec(op, shape, attrs, {} if c_out is None else {"c_out": c_out})


def keeps_width(spec: BlockSpec) -> bool:
    """Return whether the block adds its input directly, so that input and output channels are equal."""
    return bool(dict(spec.attrs).get("residual")) or dict(spec.attrs).get("shortcut") == "identity"


def se_width(c_in: int) -> int:
    """Return the channels inside a squeeze-and-excite: a quarter of the block's input for any expansion.

    NVIDIA's GPUNet scales the hidden width by 0.25 / expansion, which is the same. So it stays fixed while the hidden
    width is pruned.
    """
    return max(1, round(0.25 * c_in))


SINGLE = ("conv", "depthwise", "conv_transpose", "linear", "head")
"""Block kinds with a single layer, whose counts are a product of its widths."""


class ModelSize(NamedTuple):
    """Size of a block or a network."""

    params: int
    """weights and biases, including scale and shift of norms, excluding running statistics"""
    macs: int
    """multiply-accumulates of convolutions and linear layers per inference"""


def counts(spec: BlockSpec, *, deployed: bool = True) -> ModelSize:
    """Return the size of a block, in deployed form or in the plain training form with one norm per convolution."""
    params, macs = 2 * spec.width("c_in") if spec.op == "norm_head" else 0, 0
    for part in _convolutions(spec):
        weights = part.kernel * (part.kernel_w or part.kernel) * part.c_in * part.c_out // part.groups
        params += weights + part.biased * part.c_out * (1 if deployed or not part.normed else 2)
        macs += weights * part.pixels
    return ModelSize(params, macs)


def repvgg_counts(spec: BlockSpec) -> ModelSize:
    """Return the size of a block in training form.

    A `conv` has RepVGG's 1x1 branch and, if shapes allow, an identity's norm.
    """
    plain = counts(spec, deployed=False)
    if spec.op != "conv":
        return plain
    c_in, c_out = spec.width("c_in"), spec.width("c_out")
    point = counts(
        BlockSpec.of("conv", attrs={**dict(spec.attrs), "kernel": 1}, widths=dict(spec.widths)), deployed=False
    )
    identity_norm = 2 * c_out if c_in == c_out and spec.attr("stride") == 1 else 0
    return ModelSize(plain.params + point.params + identity_norm, plain.macs + point.macs)


class _Convolution(NamedTuple):
    """A convolution with bias or norm; a linear layer is a convolution at a single pixel."""

    c_in: int
    c_out: int
    pixels: int
    kernel: int = 1
    groups: int = 1
    normed: bool = True
    kernel_w: int | None = None
    biased: bool = True
    """whether it has a bias or a norm"""


def _convolutions(spec: BlockSpec) -> list[_Convolution]:
    c_in, attrs = spec.width("c_in"), dict(spec.attrs)
    c_out = dict(spec.widths).get("c_out", c_in)
    before, (_, height, width) = int(attrs["h"]) * int(attrs["w"]), output_shape(spec)
    after = height * width
    match spec.op:
        case "conv" | "depthwise" | "conv_transpose":
            kernel, wide = Geometry.of(attrs).kernel
            groups = c_in if spec.op == "depthwise" else int(attrs.get("groups", 1))
            pixels = before if spec.op == "conv_transpose" else after
            return [_Convolution(c_in, c_out, pixels, kernel, groups=groups, kernel_w=wide)]
        case "linear":
            return [_Convolution(c_in, c_out, before, normed=False)]
        case "stem":
            return [
                _Convolution(c_in, c_out, -(-int(attrs["h"]) // 2) * -(-int(attrs["w"]) // 2), int(attrs["kernel"]))
            ]
        case "separable":
            return [
                _Convolution(c_in, c_in, after, int(attrs["kernel"]), groups=c_in),
                _Convolution(c_in, c_out, after),
            ]
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
        case "head" | "norm_head":
            return [_Convolution(c_in, c_out, 1, normed=False)]
        case "mlp_head":
            hidden = spec.width("hidden")
            return [_Convolution(c_in, hidden, 1, biased=False), _Convolution(hidden, c_out, 1, normed=False)]
        case "preact":
            return [_Convolution(c_in, c_out, after, int(attrs["kernel"]))]
        case "avg_pool" | "add":
            return []
        case "reduction":
            kernel = int(attrs["kernel"])
            body = [_Convolution(c_in, c_out, after, kernel), _Convolution(c_out, c_out, after, kernel)]
            return [*body, _Convolution(c_in, c_out, after, biased=False)]
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
        case _:
            raise AssertionError(f"no op {spec.op!r}")
