"""Networks of the kinds that people bring, in plain torch: full size to count and to time, small enough to draw many masks for."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import RepVGGBlock


def scaled(channels: float, width: float, multiple: int = 1) -> int:
    return max(multiple, round(channels * width / multiple) * multiple)


def conv_norm(
    c_in: int,
    c_out: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    parts = [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out, eps=eps),
    ]
    return nn.Sequential(*parts, *([act()] if act else []))


# --- RepVGG (Ding et al. 2021, Table 2) ---


def repvgg(
    depths: tuple[int, ...], widths: tuple[float, ...], *, width: float = 1.0, groups: int = 1, classes: int = 1000
) -> nn.Module:
    blocks: list[nn.Module] = []
    channels = 3
    for depth, base in zip((1, *depths), (min(64, widths[0]), *widths), strict=True):
        for index in range(depth):
            c_out = scaled(base, width, groups)
            grouped = groups if len(blocks) % 2 and len(blocks) < 27 else 1
            blocks.append(RepVGGBlock(channels, c_out, stride=1 if index else 2, groups=grouped))
            channels = c_out
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def repvgg_a0(width: float = 1.0, depths: tuple[int, ...] = (2, 4, 14, 1)) -> nn.Module:
    return repvgg(depths, (48, 96, 192, 1280), width=width)


def repvgg_b1g4(width: float = 1.0, depths: tuple[int, ...] = (4, 6, 16, 1)) -> nn.Module:
    return repvgg(depths, (128, 256, 512, 2048), width=width, groups=4)


# --- ResNet (He et al. 2016) ---


class Residual(nn.Module):
    def __init__(self, c_in: int, inner: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.out_channels = c_out = inner * 4 if bottleneck else inner
        if bottleneck:
            self.body = nn.Sequential(
                conv_norm(c_in, inner, 1), conv_norm(inner, inner, 3, stride), conv_norm(inner, c_out, 1, act=None)
            )
        else:
            self.body = nn.Sequential(conv_norm(c_in, inner, 3, stride), conv_norm(inner, c_out, act=None))
        self.downsample = conv_norm(c_in, c_out, 1, stride, act=None) if stride > 1 or c_in != c_out else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(
        self, depths: tuple[int, ...], *, bottleneck: bool, width: float = 1.0, classes: int | None = 1000
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.stem = nn.Sequential(conv_norm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        self.widths: list[int] = []
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Residual(channels, scaled(64 * 2**stage, width), stride, bottleneck=bottleneck))
                channels = blocks[-1].out_channels
            self.stages.append(nn.Sequential(*blocks))
            self.widths.append(channels)
        self.head = nn.Linear(channels, classes) if classes else None

    def features(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(self.features(x)[-1].mean((2, 3)))


def resnet18(width: float = 1.0, depths: tuple[int, ...] = (2, 2, 2, 2)) -> nn.Module:
    return ResNet(depths, bottleneck=False, width=width)


def resnet50(width: float = 1.0, depths: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    return ResNet(depths, bottleneck=True, width=width)


# --- MobileNetV2 (Sandler et al. 2018) and EfficientNet-B0 (Tan and Le 2019) ---


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int,
        expand: int,
        kernel: int,
        act: Callable[[], nn.Module],
        *,
        se: bool,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        inner = c_in * expand
        parts: list[nn.Module] = [conv_norm(c_in, inner, 1, act=act, eps=eps)] if expand > 1 else []
        parts.append(conv_norm(inner, inner, kernel, stride, groups=inner, act=act, eps=eps))
        if se:
            parts.append(SqueezeExcite(inner, max(1, c_in // 4)))
        self.body = nn.Sequential(*parts, conv_norm(inner, c_out, 1, act=None, eps=eps))
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def inverted(
    rows: tuple[tuple[int, ...], ...], act: Callable[[], nn.Module], stem: int, *, width: float, se: bool, deepest: int
) -> nn.Module:
    """Rows of (expansion, channels, depth, stride, kernel)."""
    channels = scaled(stem, width)
    parts: list[nn.Module] = [conv_norm(3, channels, 3, 2, act=act)]
    for expand, base, depth, stride, kernel in rows:
        for index in range(min(depth, deepest)):
            parts.append(
                InvertedResidual(channels, scaled(base, width), 1 if index else stride, expand, kernel, act, se=se)
            )
            channels = scaled(base, width)
    last = scaled(1280, width)
    return nn.Sequential(
        *parts,
        conv_norm(channels, last, 1, act=act),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(last, 1000),
    )


def mobilenet_v2(width: float = 1.0, deepest: int = 4) -> nn.Module:
    rows = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )
    return inverted(rows, nn.ReLU6, 32, width=width, se=False, deepest=deepest)


def efficientnet_b0(width: float = 1.0, deepest: int = 4) -> nn.Module:
    rows = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    return inverted(rows, nn.SiLU, 32, width=width, se=True, deepest=deepest)


# --- DenseNet-121 (Huang et al. 2017): norms before convolutions, over concatenations ---


class DenseLayer(nn.Module):
    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet121(width: float = 1.0, depths: tuple[int, ...] = (6, 12, 24, 16)) -> nn.Module:
    growth, channels = scaled(32, width), scaled(64, width)
    parts: list[nn.Module] = [conv_norm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            parts.append(DenseLayer(channels, growth))
            channels += growth
        if stage < len(depths) - 1:
            parts += [
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels //= 2
    return nn.Sequential(
        *parts, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)
    )


# --- U-Net (Ronneberger et al. 2015), padded, with norms ---


class UNet(nn.Module):
    def __init__(self, width: float = 1.0, levels: int = 5, classes: int = 2) -> None:
        super().__init__()
        widths = [scaled(64 * 2**level, width) for level in range(levels)]
        self.down = nn.ModuleList(self.pair(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(widths))
        self.merge = nn.ModuleList(self.pair(2 * a, a) for a in widths[:-1])
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def pair(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(c_in, c_out), conv_norm(c_out, c_out))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for index, block in enumerate(self.down):
            x = block(self.pool(x) if index else x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat((skips[level], self.up[level](x)), dim=1))
        return self.head(x)


# --- YOLACT (Bolya et al. 2019): ResNet-101, feature pyramid, prototypes, one prediction head for five levels ---


class Yolact(nn.Module):
    def __init__(
        self,
        width: float = 1.0,
        depths: tuple[int, ...] = (3, 4, 23, 3),
        *,
        classes: int = 81,
        prototypes: int = 32,
        anchors: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(depths, bottleneck=True, width=width, classes=None)
        self.classes, self.prototypes = classes, prototypes
        channels = scaled(256, width)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in self.backbone.widths[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(2))
        self.proto = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.proto_out = nn.Conv2d(channels, prototypes, 1)
        self.upfeature = nn.Conv2d(channels, channels, 3, padding=1)
        self.bbox = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        self.conf = nn.Conv2d(channels, anchors * classes, 3, padding=1)
        self.mask = nn.Conv2d(channels, anchors * prototypes, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.backbone.features(image)[1:]
        merged: list[Tensor] = []
        for lateral, feature in zip(reversed(self.lateral), reversed(found), strict=True):
            x = lateral(feature)
            if merged:
                x = x + F.interpolate(merged[0], size=x.shape[2:], mode="bilinear", align_corners=False)
            merged.insert(0, x)
        levels = [F.relu(smooth(x)) for smooth, x in zip(self.smooth, merged, strict=True)]
        for extra in self.extra:
            levels.append(extra(levels[-1]))
        proto = levels[0]
        for index, conv in enumerate(self.proto):
            if index == 3:
                proto = F.interpolate(proto, scale_factor=2, mode="bilinear", align_corners=False)
            proto = F.relu(conv(proto))
        shared = [F.relu(self.upfeature(x)) for x in levels]

        def head(layer: nn.Module, size: int) -> Tensor:
            return torch.cat([layer(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, size) for x in shared], 1)

        return {
            "loc": head(self.bbox, 4),
            "conf": F.softmax(head(self.conf, self.classes), -1),
            "mask": torch.tanh(head(self.mask, self.prototypes)),
            "proto": F.relu(self.proto_out(proto)).permute(0, 2, 3, 1),
        }


# --- the ResNet generator of CycleGAN (Zhu et al. 2017) ---


class GeneratorBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def cyclegan(width: float = 1.0, blocks: int = 9) -> nn.Module:
    a, b, c = (scaled(64 * 2**level, width) for level in range(3))
    return nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, a, 7), nn.InstanceNorm2d(a), nn.ReLU(True),
        nn.Conv2d(a, b, 3, 2, 1), nn.InstanceNorm2d(b), nn.ReLU(True),
        nn.Conv2d(b, c, 3, 2, 1), nn.InstanceNorm2d(c), nn.ReLU(True),
        *(GeneratorBlock(c) for _ in range(blocks)),
        nn.ConvTranspose2d(c, b, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(b), nn.ReLU(True),
        nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(a), nn.ReLU(True),
        nn.ReflectionPad2d(3), nn.Conv2d(a, 3, 7), nn.Tanh(),
    )  # fmt: skip


# --- channels that are split: chunk, torch.split, slices ---


class SplitNet(nn.Module):
    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c = scaled(32, width, 4)
        self.c = c
        self.stem = conv_norm(3, 2 * c)
        self.left, self.right = conv_norm(c, c, act=nn.SiLU), conv_norm(c, c, 5, groups=4)
        self.wide = conv_norm(2 * c, 4 * c, 1)
        self.a, self.b, self.d = conv_norm(c, c), conv_norm(2 * c, c), conv_norm(c, c, act=nn.Hardswish)
        self.head = nn.Linear(3 * c + c // 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, dim=1)
        x = F.max_pool2d(self.wide(torch.cat([self.left(one), self.right(two)], 1)), 2)
        a, b, rest = torch.split(x, [self.c, 2 * self.c, self.c], dim=1)
        last = rest[:, : self.c // 4]
        x = torch.cat([self.a(a), self.b(b), self.d(rest), last], 1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@dataclass(frozen=True)
class Network:
    """One of the zoo: how to make it, full and small."""

    name: str
    build: Callable[..., nn.Module]
    side: int
    """of its square input"""
    small: dict[str, Any]
    """arguments of the small one"""
    small_side: int
    params: int | None = None
    """of the full one as it is trained, where published or counted elsewhere"""

    def make(self, *, small: bool, seed: int = 0) -> nn.Module:
        """In training form, with norms that are no identities."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build(**(self.small if small else {}))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 2.0)
        return model.eval()

    def input(self, *, small: bool, batch: int = 1, seed: int = 0) -> Tensor:
        side = self.small_side if small else self.side
        return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


ZOO = (
    Network("RepVGG-A0", repvgg_a0, 224, {"width": 1 / 8, "depths": (1, 2, 2, 1)}, 32, 9_108_968),
    Network("RepVGG-B1g4", repvgg_b1g4, 224, {"width": 1 / 16, "depths": (2, 2, 2, 1)}, 32),
    Network("ResNet-18", resnet18, 224, {"width": 1 / 8}, 32, 11_689_512),
    Network("ResNet-50", resnet50, 224, {"width": 1 / 16, "depths": (2, 2, 2, 2)}, 32, 25_557_032),
    Network("MobileNetV2", mobilenet_v2, 224, {"width": 1 / 4, "deepest": 2}, 32, 3_504_872),
    Network("EfficientNet-B0", efficientnet_b0, 224, {"width": 1 / 4, "deepest": 1}, 32, 5_288_548),
    Network("DenseNet-121", densenet121, 224, {"width": 1 / 8, "depths": (2, 2, 2, 2)}, 32, 7_978_856),
    Network("U-Net", UNet, 256, {"width": 1 / 16, "levels": 3}, 32),
    Network("YOLACT", Yolact, 550, {"width": 1 / 32, "depths": (1, 2, 2, 1), "classes": 3, "prototypes": 4}, 64),
    Network("CycleGAN", cyclegan, 256, {"width": 1 / 8, "blocks": 2}, 32, 11_378_179),
    Network("Split", SplitNet, 64, {"width": 1 / 4}, 16),
)
