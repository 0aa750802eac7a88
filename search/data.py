"""Image classification data: scikit-learn's handwritten digits, or one folder of images per class."""

import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reparam.typed_torch import from_numpy, to_list
from search.architecture import Preprocessing
from search.augment import Augmentation
from search.classification import Classification, Split
from search.errors import SearchError
from search.image_files import ImageFiles, decode

HELD_OUT = 0.2
"""Share of every class that is held out if a data set has no test split."""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
KNOWN = "digits or folder:PATH"
IN_MEMORY_BYTES = 2**32
"""Largest size of a folder's pixels that is kept in memory."""
FEW = 10_000
"""Number of images that mean and standard deviation are computed from if they stay on disk."""


def random_parts(count: int, shares: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Return the indices of disjoint random subsets of `count` samples, such as 80 % and 20 %.

    Args:
        count: number of samples.
        shares: share of each subset, above 0, at most 1 in total; the boundaries between subsets are rounded.
        generator: the only source of randomness; seed it the same way for the same subsets.

    Raises:
        SearchError: a subset would be empty.
    """
    assert all(share > 0 for share in shares), shares
    assert sum(shares) < 1 + 1e-9, shares
    order = torch.randperm(count, generator=generator)
    ends = [0, *(round(count * end) for end in itertools.accumulate(shares))]
    parts = [order[start:end] for start, end in itertools.pairwise(ends)]
    if not all(map(len, parts)):
        raise SearchError(
            f"{count} training samples are too few to be divided into shares of {', '.join(map(str, shares))}"
        )
    return parts


def load(name: str, resolution: int) -> Classification:
    """Load `digits` or `folder:PATH` at resolution x resolution pixels.

    Raises:
        SearchError: the name is unknown, or the folder cannot be used; see `folder`.
    """
    _require_text(name)
    if name == "digits":
        return digits(resolution)
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        return folder(Path(path), resolution)
    raise SearchError(f"unknown data {name!r}: known are {KNOWN}")


def digits(resolution: int = 32) -> Classification:
    """Load 1797 handwritten digits of 8x8 pixels (scikit-learn's copy of the UCI test set), enlarged.

    A fifth of each class is held out.
    """
    bunch = importlib.import_module("sklearn.datasets").load_digits()  # has no types
    grey = from_numpy(bunch.images).to(torch.float32)[:, None] * (255 / 16)
    enlarged = torch.nn.functional.interpolate(
        grey, size=(resolution, resolution), mode="bilinear", align_corners=False
    )
    images = enlarged.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    train, held_out = _stratified(Split(images=images, labels=from_numpy(bunch.target).to(torch.int64)))
    return _dataset("digits", tuple("0123456789"), train, held_out, Augmentation(shift_px=resolution // 12, flip=False))


def folder(path: Path, resolution: int) -> Classification:
    """Load images from PATH/train/CLASS and PATH/test/CLASS, or from PATH/CLASS with a fifth of each class held out.

    Images are decoded once and kept as 8-bit RGB. If they exceed `IN_MEMORY_BYTES`, they stay on disk and are decoded
    on each use.

    Raises:
        SearchError: there is no such folder, there are no images or fewer than two classes, the splits have different
            classes, or a file is not an image.
    """
    if not path.is_dir():
        raise SearchError(
            f"{path} is not a folder: --data folder:PATH needs PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and "
            "PATH/test/CLASS/*.jpg"
        )
    name = f"folder:{path}"
    augmentation = Augmentation(shift_px=resolution // 8, flip=True)
    if (path / "train").is_dir() and (path / "test").is_dir():
        labels, test_labels = _classes(path / "train"), _classes(path / "test")
        if labels != test_labels:
            raise SearchError(
                f"{path}/train and {path}/test must have the same classes; only one has "
                f"{sorted(set(labels) ^ set(test_labels))[0]!r}"
            )
        return _dataset(
            name,
            labels,
            _read_split(path / "train", labels, resolution),
            _read_split(path / "test", labels, resolution),
            augmentation,
        )
    labels = _classes(path)
    for label in labels:
        if len(_image_files(path / label)) < 2:
            raise SearchError(f"{path / label} has only one image: a class needs at least 2, one of them is held out")
    return _dataset(name, labels, *_stratified(_read_split(path, labels, resolution)), augmentation)


def _dataset(
    name: str, labels: tuple[str, ...], train: Split, held_out: Split, augmentation: Augmentation
) -> Classification:
    # Shuffle with a fixed seed, so that a batch, or the first few images, represent all classes.
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    held_out = held_out.part(order)
    images = train.images
    if isinstance(images, ImageFiles):  # estimate from a sample
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:FEW]]
    # One channel at a time, since a large set takes four times its size as floats.
    channels = [images[:, index].to(torch.float32) / 255 for index in range(3)]
    preprocessing = Preprocessing(
        size=(images.shape[2], images.shape[3]),
        mean=_triple([round(float(channel.mean()), 6) for channel in channels]),
        std=_triple([max(round(float(channel.std()), 6), 1e-3) for channel in channels]),
    )
    return Classification(
        name=name, labels=labels, train=train, held_out=held_out, preprocessing=preprocessing, augmentation=augmentation
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _stratified(split: Split) -> tuple[Split, Split]:
    # A fixed seed, so that runs with different seeds are compared on the same held-out images.
    generator = torch.Generator().manual_seed(0)
    held_out = torch.zeros(len(split), dtype=torch.bool)
    labels: list[int] = to_list(split.labels)
    for label in sorted(set(labels)):
        rows = torch.argwhere(split.labels == label)[:, 0]
        count = max(1, round(HELD_OUT * len(rows)))
        held_out[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return split.part(~held_out), split.part(held_out)


def _classes(path: Path) -> tuple[str, ...]:
    labels = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and _image_files(entry))
    if not labels:
        raise SearchError(
            f"{path} has no images: expected one folder a class, {path}/CLASS/*.jpg (also {', '.join(SUFFIXES)})"
        )
    if len(labels) < 2:
        raise SearchError(
            f"{path} has only one class with images, {labels[0]!r}: a classifier needs at least 2 folders"
        )
    for label in labels:
        _require_text(label)
    return tuple(labels)


def _require_text(name: str) -> None:
    """Require a name that a run can record, before the run starts."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SearchError(f"{name!r} is not UTF-8, and a run records it as text: rename it") from error


def _image_files(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)


def _read_split(path: Path, labels: Sequence[str], resolution: int) -> Split:
    """Read the images of a folder into memory, or only list them if there are too many."""
    files = [(file, index) for index, label in enumerate(labels) for file in _image_files(path / label)]
    targets = torch.tensor([index for _, index in files], dtype=torch.int64)
    if 3 * resolution**2 * len(files) > IN_MEMORY_BYTES:
        return Split(images=ImageFiles([file for file, _ in files], resolution), labels=targets)
    images = np.empty((len(files), resolution, resolution, 3), dtype=np.uint8)
    for row, (file, _) in enumerate(files):
        images[row] = decode(file, resolution)
    return Split(images=from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels=targets)
