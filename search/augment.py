"""Augmentation of training images: shifts and flips in plain torch, other transforms by torchvision."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from jaxtyping import UInt8
from msgspec import Struct
from torch import Tensor

from latency.distribution import install_command
from latency.errors import MissingExtra, import_extra, one_line
from reparam.typed_torch import fork_rng, manual_seed, to_list
from search.transforms import Transform

Images = UInt8[Tensor, "images 3 height width"]


class Augmentation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to augment images. If `transforms` is not empty, it replaces `shift_px` and `flip`."""

    shift_px: int = 0
    """largest shift in each direction; border pixels are repeated"""
    flip: bool = False
    """whether to mirror horizontally with probability 0.5"""
    transforms: tuple[Transform, ...] = ()
    """torchvision transforms, in this order"""
    fill: tuple[int, int, int] = (0, 0, 0)
    """RGB colour, 0 to 255, of areas that transforms move in or cut out"""


def augment(images: Images, augmentation: Augmentation, generator: torch.Generator) -> Images:
    """Augment the images of a batch, each with its own random draw.

    Args:
        images: UInt8 [images, 3, height, width].
        augmentation: the augmentation to apply.
        generator: the only source of randomness.

    Raises:
        MissingExtra: there are transforms, and torchvision is not installed.
    """
    if augmentation.transforms:
        return _transformed(images, _compose(augmentation, images.shape[2:]), generator)
    count, _, height, width = images.shape
    shift = augmentation.shift_px
    shifts = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    if augmentation.flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return images[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _transformed(images: Images, change: Callable[[Tensor], Tensor], generator: torch.Generator) -> Images:
    """Apply torchvision transforms, which use torch's global random state.

    Seed it for each image and restore it afterwards.
    """
    seeds: list[int] = to_list(torch.randint(2**63 - 1, (len(images),), generator=generator))
    changed: list[Tensor] = []
    with fork_rng(devices=[]):
        for image, seed in zip(images, seeds, strict=True):
            manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)


def _compose(augmentation: Augmentation, size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    steps = [
        _torchvision_transform(transform, tuple(size), augmentation.fill, _torchvision())
        for transform in augmentation.transforms
    ]
    return steps[0] if len(steps) == 1 else _torchvision().Compose(steps)


def _torchvision() -> ModuleType:
    import_extra("torchvision", "augment")
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError, OSError) as error:  # its C++ library was built for another torch
        raise MissingExtra(
            f"torchvision does not fit torch {torch.__version__} ({one_line(error, 120)}): "
            f"{install_command('augment', upgrade=True)}"
        ) from error


def _torchvision_transform(
    transform: Transform, size: tuple[int, ...], fill: tuple[int, int, int], v2: ModuleType
) -> Callable[[Tensor], Tensor]:
    """Return the torchvision transform for images of height and width `size`."""
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
        case _:
            raise AssertionError(transform.name)
