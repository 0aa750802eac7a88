"""A classifier from a folder of images.

Scikit-learn's handwritten digits, written as one folder of images per class.
"""

from pathlib import Path

import steps
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution with its norm and activation."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def make() -> nn.Module:
    """Return a plain network for ten classes of 16x16 images."""
    body = nn.Sequential(conv(3, 32), conv(32, 64, 2), conv(64, 64), conv(64, 128, 2), conv(128, 128))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def write_images(folder: Path, count: int | None) -> None:
    """Write all digits, or the first `count`, to `folder`/CLASS/NUMBER.png."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)


def main() -> None:
    """Find a network with 60 % of the latency."""
    given = steps.options()
    images, network = given.out / "images", f"{__file__}:make"
    write_images(images, 100 if given.small else None)
    steps.search(given, network, "3x16x16", "--data", f"folder:{images}", epochs=(10, 8, 10))


if __name__ == "__main__":
    main()
