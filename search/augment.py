"""What happens to a training image each time that it is shown: shifts and flips by torch alone, other changes by torchvision."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import UInt8
from msgspec import Struct
from torch import Tensor

from latency.distribution import install_command
from latency.errors import MissingExtra, one_line, require
from search.transforms import Transform

Images = UInt8[Tensor, "images 3 height width"]


class Augmentation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a data set comes with, or, where `transforms` has some, these alone."""

    shift_px: int = 0
    """moved by up to so many pixels each way; the border is repeated"""
    flip: bool = False
    """mirrored left to right half of the time"""
    transforms: tuple[Transform, ...] = ()
    """of torchvision, in this order"""
    fill: tuple[int, int, int] = (0, 0, 0)
    """colour of what transforms move in or cut out, of 255"""


def augment(images: Images, augmentation: Augmentation, generator: torch.Generator) -> Images:
    """Change the images of a batch, each by its own draw.

    Args:
        images: UInt8 [images, 3, height, width].
        augmentation: how.
        generator: the only source of randomness.

    Raises:
        MissingExtra: there are transforms, and torchvision is not installed.
    """
    if augmentation.transforms:
        return _transformed(images, _compose(augmentation, images.shape[2:]), generator)
    count, _, height, width = images.shape
    reach = augmentation.shift_px
    shifts = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    if augmentation.flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return images[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _transformed(images: Images, change: Callable[[Tensor], Tensor], generator: torch.Generator) -> Images:
    """Torchvision draws from torch's global state: for each image it is seeded by a draw, and afterwards as it was."""
    seeds = torch.randint(2**63 - 1, (len(images),), generator=generator).tolist()
    changed: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds, strict=True):
            torch.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)


def _compose(augmentation: Augmentation, size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    steps = [_made(transform, tuple(size), augmentation.fill, _torchvision()) for transform in augmentation.transforms]
    return steps[0] if len(steps) == 1 else _torchvision().Compose(steps)


def _torchvision() -> ModuleType:
    require("torchvision", "augment")
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError, OSError) as error:  # its C++ library is of another torch
        raise MissingExtra(
            f"torchvision does not fit torch {torch.__version__} ({one_line(error, 120)}): {install_command('augment', upgrade=True)}"
        ) from error


def _made(transform: Transform, size: tuple[int, ...], fill: tuple[int, int, int], v2: Any) -> Callable[[Tensor], Tensor]:
    """A transform as torchvision has it, for images of height and width `size`."""
    amount = transform.amount
    match transform.name:
        case "flip":
            return v2.RandomHorizontalFlip(amount)
        case "crop":
            return v2.RandomCrop(size, padding=int(amount), fill=fill)
        case "resized-crop":
            return v2.RandomResizedCrop(size, scale=(amount, 1.0), antialias=True)
        case "randaugment":
            return v2.RandAugment(magnitude=int(amount), fill=list(fill))
        case "cutout":
            share = amount**2 / (size[0] * size[1])
            return v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=list(fill))
    raise AssertionError(transform.name)
