"""Segmentation: a small U-Net finds discs, squares and triangles, pixel by pixel.

It defines its own task, evaluated by mIoU.
"""

import steps
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import search

CLASSES, SIDE = 4, 32
"""Background, disc, square, triangle; side length in pixels."""


def double(c_in: int, c_out: int) -> nn.Sequential:
    """Return two convolutions, each with its norm and activation."""
    first = nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class UNet(nn.Module):
    """Three resolutions, and a shortcut at each of the upper two."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(3, 16), double(16, 32), double(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.head = double(64, 32), double(32, 16), nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits for every pixel."""
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.bottom(F.max_pool2d(two, 2))
        two = self.join2(torch.cat([self.up2(three), two], 1))
        return self.head(self.join1(torch.cat([self.up1(two), one], 1)))


def make() -> nn.Module:
    """Return the network before pruning."""
    return UNet()


def drawn(count: int, seed: int) -> TensorDataset:
    """Draw images of three shapes at random positions in noise, with the class of every pixel."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images, masks = (
        0.3 * torch.randn(count, 3, SIDE, SIDE, generator=draw),
        torch.zeros(count, SIDE, SIDE, dtype=torch.long),
    )
    for image, mask in zip(images, masks, strict=True):
        for shape in range(1, CLASSES):
            row, column, half = (
                int(torch.randint(low, high, (), generator=draw)) for low, high in ((4, 28), (4, 28), (3, 8))
            )
            dx, dy = x - column, y - row
            inside = [
                dx**2 + dy**2 <= half**2,
                torch.maximum(dx.abs(), dy.abs()) <= half,
                (dy.abs() <= half) & (2 * dx.abs() <= dy + half),
            ]
            mask[inside[shape - 1]] = shape
            image[:, inside[shape - 1]] += torch.rand(3, 1, generator=draw)
    return TensorDataset(images, masks)


class Shapes(search.Task):
    """Task: predict the class of every pixel."""

    metric = search.Metric(name="mIoU", unit="%")

    def __init__(self, train: int, held_out: int) -> None:
        self.train, self.held_out = drawn(train, 0), drawn(held_out, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over pixels."""
        return F.cross_entropy(outputs, targets)

    def statistics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return for each image and class the pixel counts of the intersection and the union."""
        found, wanted = F.one_hot(outputs.argmax(1), CLASSES).bool(), F.one_hot(targets, CLASSES).bool()
        return torch.cat([(found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))], 1).float()

    def value(self, means: Tensor) -> Tensor:
        """Return the intersection over union, averaged over classes."""
        return (means[:CLASSES] / means[CLASSES:].clamp(min=1e-9)).mean()


def make_task() -> search.Task:
    """Return the full-size task."""
    return Shapes(1000, 250)


def make_small_task() -> search.Task:
    """Return a small task for a quick run."""
    return Shapes(32, 8)


def main() -> None:
    """Find a network with 60 % of the latency."""
    given = steps.options()
    network, task = f"{__file__}:make", f"{__file__}:{'make_small_task' if given.small else 'make_task'}"
    steps.search(given, network, f"3x{SIDE}x{SIDE}", "--task", task, epochs=(8, 6, 8))


if __name__ == "__main__":
    main()
