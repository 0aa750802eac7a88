"""The networks that benchmarks of deployment share: in their deployed form, lowered, with inputs. Not a script."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploy import to_onnx
from reparam import fuse
from search import spaces
from search.blocks import serial

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from encoder import Encoder
from zoo import ZOO

_BATCH = 1


class Overflow(nn.Module):
    """Four convolutions, between two of which activations are around 1e6: what comes out is as tame as what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(c, 16, 3, padding=1) for c in (3, 16, 16, 16))
        with torch.no_grad():
            self.layers[1].weight *= 1e6
            self.layers[2].weight /= 1e6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Means of the last maps."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.mean((2, 3))


@dataclass(frozen=True)
class Network:
    """How to make one, and the side of its square input."""

    name: str
    build: Callable[[], nn.Module]
    side: int

    def module(self) -> nn.Module:
        """As it is trained, in evaluation mode; its weights are those of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()

    def example(self) -> torch.Tensor:
        """An input of its shape."""
        return torch.zeros(_BATCH, 3, self.side, self.side)

    def onnx(self) -> bytes:
        """FP32, branches merged and norms folded."""
        return to_onnx(fuse(self.module(), self.example()), self.example())

    def samples(self, count: int) -> np.ndarray:
        """Normal numbers."""
        return np.random.default_rng(0).standard_normal((count, 3, self.side, self.side)).astype(np.float32)


def networks(names: Sequence[str] = ()) -> Iterator[Network]:
    """All of them, or those that are named."""
    zoo = {network.name: network for network in ZOO}
    full = [
        *(
            Network(name, lambda name=name: zoo[name].make(small=False), zoo[name].side)
            for name in ("RepVGG-A0", "ResNet-50", "MobileNetV2")
        ),
        Network("GPUNet-1", lambda: serial(spaces.get("gpunet-1").network()), _side("gpunet-1")),
        Network("EfficientNet-B0 (SE)", lambda: zoo["EfficientNet-B0"].make(small=False), zoo["EfficientNet-B0"].side),
        Network("U-Net", lambda: zoo["U-Net"].make(small=False), zoo["U-Net"].side),
        Network("encoder block", Encoder, 224),
        Network("planted overflow", Overflow, 32),
    ]
    if unknown := set(names) - {network.name for network in full}:
        raise SystemExit(f"unknown network {min(unknown)!r}: choose of {', '.join(network.name for network in full)}")
    return (network for network in full if not names or network.name in names)


def _side(space: str) -> int:
    return int(spaces.get(space).network()[0].attr("h"))
