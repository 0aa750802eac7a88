"""Image translation: a CycleGAN-style generator recolours images. It defines its own task, evaluated by PSNR."""

import steps
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import search

SIDE = 32
"""Side length in pixels."""


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2)]
        self.body = nn.Sequential(
            convs[0], nn.InstanceNorm2d(channels), nn.ReLU(), convs[1], nn.InstanceNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return x + self.body(x)


def make() -> nn.Module:
    """Return the generator: two downsamplings, three residual blocks, two upsamplings."""
    down = [
        nn.Conv2d(3, 16, 7, 1, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
    ]
    up = [
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 3, 7, 1, 3),
    ]
    return nn.Sequential(*down, *(Residual(64) for _ in range(3)), *up)


def drawn(count: int, seed: int) -> TensorDataset:
    """Draw smooth images, and the same images with rotated colour channels and black edges."""
    draw = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(count, 3, 6, 6, generator=draw), size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
    grey = images.mean(1, keepdim=True)
    edge = F.pad((grey[..., 1:, 1:] - grey[..., :-1, :-1]).abs(), (1, 0, 1, 0)) > 0.06
    return TensorDataset(2 * images - 1, 2 * images.roll(1, 1) * ~edge - 1)


class Recolour(search.Task):
    """Task: predict the translated image."""

    metric = search.Metric(name="PSNR", unit="dB")

    def __init__(self, train: int, held_out: int) -> None:
        self.train, self.held_out = drawn(train, 0), drawn(held_out, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean absolute error."""
        return F.l1_loss(outputs, targets)

    def statistics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of each image."""
        return (outputs - targets).square().flatten(1).mean(1, keepdim=True)

    def value(self, means: Tensor) -> Tensor:
        """Return the peak signal-to-noise ratio over all pixels of all images; values range from -1 to 1."""
        return 10 * torch.log10(4 / means[0])


def make_task() -> search.Task:
    """Return the full-size task."""
    return Recolour(1000, 250)


def make_small_task() -> search.Task:
    """Return a small task for a quick run."""
    return Recolour(32, 8)


def main() -> None:
    """Find a network with 60 % of the latency."""
    given = steps.options()
    network, task = f"{__file__}:make", f"{__file__}:{'make_small_task' if given.small else 'make_task'}"
    steps.search(given, network, f"3x{SIDE}x{SIDE}", "--task", task, epochs=(8, 6, 8))


if __name__ == "__main__":
    main()
