"""Images in memory: scikit-learn's handwritten digits, or a folder of images a class."""

import hashlib
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from latency.errors import FileError, one_line
from latency.files import open_regular
from search.architecture import Preprocessing
from search.augment import Augmentation, Images, augment
from search.errors import SearchError
from search.transforms import parse

Batch = Float[Tensor, "batch 3 height width"]
Labels = Int[Tensor, " images"]

HELD_OUT = 0.2
"""Share of every class that is held out where a data set has no test part of its own."""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
KNOWN = "digits or folder:PATH"


class Split(Struct, frozen=True, kw_only=True):
    """Images and their classes."""

    images: Tensor
    """UInt8 [images, 3, height, width]"""
    labels: Tensor
    """Int64 [images]"""

    def __len__(self) -> int:
        return len(self.labels)


class Dataset(Struct, frozen=True, kw_only=True):
    """Training images, held-out images, and how to show them to a network."""

    name: str
    """as `load` was asked for it"""
    labels: tuple[str, ...]
    """names of the classes"""
    train: Split
    held_out: Split
    preprocessing: Preprocessing
    augmentation: Augmentation

    def sha256(self) -> str:
        """Hash of every pixel and label of both parts."""
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            digest.update(memoryview(split.images.numpy()))  # pyright: ignore[reportArgumentType]
            digest.update(memoryview(split.labels.numpy()))  # pyright: ignore[reportArgumentType]
        return digest.hexdigest()

    def normalise(self, images: Images) -> Batch:
        """What the network is fed with."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (images / 255 - mean) / std

    def training_batches(self, size: int, generator: torch.Generator, rows: Tensor | None = None) -> "TrainingBatches":
        """One epoch in random order, augmented; what does not fill a batch is left out this time.

        Args:
            size: images a batch; all images make one batch where there are fewer.
            generator: the only source of randomness.
            rows: indices of the training images to show, such as one of `random_parts`; all by default.
        """
        return TrainingBatches(self, size, generator, torch.arange(len(self.train)) if rows is None else rows)

    def of_classes(self, classes: Sequence[int]) -> "Dataset":
        """The images of some classes alone, whose labels are then their places among these.

        Args:
            classes: indices of different classes, ascending.
        """

        def only(split: Split) -> Split:
            places = torch.full((len(self.labels),), -1).scatter(0, torch.tensor(classes), torch.arange(len(classes)))[split.labels]
            return Split(images=split.images[places >= 0], labels=places[places >= 0])

        labels = tuple(self.labels[index] for index in classes)
        return replace(self, labels=labels, train=only(self.train), held_out=only(self.held_out))

    def plain_batches(self, size: int, rows: Tensor) -> Iterator[tuple[Batch, Labels]]:
        """Training images as they are, in the order of their indices `rows`."""
        for part in rows.split(size):
            yield self.normalise(self.train.images[part]), self.train.labels[part]

    def augmented(self, changes: str) -> "Dataset":
        """The same images, changed in training as `transforms.parse` reads it.

        Raises:
            SearchError: it cannot be read, or a transform does not fit the images.
            MissingExtra: torchvision is needed, and not installed.
        """
        found = parse(changes)
        if found is None:
            return self
        red, green, blue = (round(255 * mean) for mean in self.preprocessing.mean)
        changed = replace(self, augmentation=Augmentation(transforms=found, fill=(red, green, blue)))
        for transform in found:
            if transform.name in ("crop", "cutout") and transform.amount >= min(self.preprocessing.size):
                raise SearchError(
                    f"--augment {transform.name}:{transform.amount:g} is no smaller than the images, {self.preprocessing.size}"
                )
        augment(self.train.images[:1], changed.augmentation, torch.Generator())  # what is missing is said before the training
        return changed

    def held_out_batches(self, size: int) -> Iterator[tuple[Batch, Labels]]:
        """All held-out images, in an order that mixes the classes and never changes."""
        for images, labels in zip(self.held_out.images.split(size), self.held_out.labels.split(size), strict=True):
            yield self.normalise(images), labels


@final
class TrainingBatches:
    """One epoch of some training images; see `Dataset.training_batches`."""

    def __init__(self, data: Dataset, size: int, generator: torch.Generator, rows: Tensor) -> None:
        self._data, self._size, self._generator, self._rows = data, min(size, len(rows)), generator, rows

    def __len__(self) -> int:
        return len(self._rows) // self._size

    def __iter__(self) -> Iterator[tuple[Batch, Labels]]:
        data = self._data
        order = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
        for rows in order[: len(self) * self._size].split(self._size):
            images = augment(data.train.images[rows], data.augmentation, self._generator)
            yield data.normalise(images), data.train.labels[rows]


def random_parts(count: int, shares: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Indices of disjoint random subsets of `count` images, such as 80 % and 20 %.

    Args:
        count: number of images.
        shares: of each subset, above 0, at most 1 together; the boundaries between subsets are rounded.
        generator: the only source of randomness: a new draw for every epoch, or one that is seeded alike for fixed subsets.

    Raises:
        SearchError: a subset would be empty.
    """
    assert all(share > 0 for share in shares), shares
    assert sum(shares) < 1 + 1e-9, shares
    order = torch.randperm(count, generator=generator)
    ends = [0, *(round(count * end) for end in itertools.accumulate(shares))]
    parts = [order[start:end] for start, end in itertools.pairwise(ends)]
    if not all(map(len, parts)):
        raise SearchError(f"{count} training images are too few to be divided into shares of {', '.join(map(str, shares))}")
    return parts


def load(name: str, resolution: int) -> Dataset:
    """Load `digits` or `folder:PATH` at resolution x resolution pixels.

    Raises:
        SearchError: an unknown name, or a folder that cannot be used; see `folder`.
    """
    _require_text(name)
    if name == "digits":
        return digits(resolution)
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        return folder(Path(path), resolution)
    raise SearchError(f"unknown data {name!r}: known are {KNOWN}")


def digits(resolution: int = 32) -> Dataset:
    """1797 handwritten digits of 8x8 pixels (scikit-learn's copy of the UCI test set), enlarged; a fifth of each class is held out."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    grey = torch.from_numpy(bunch.images).to(torch.float32)[:, None] * (255 / 16)
    enlarged = torch.nn.functional.interpolate(grey, size=(resolution, resolution), mode="bilinear", align_corners=False)
    images = enlarged.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    train, held_out = _stratified(images, torch.from_numpy(bunch.target).to(torch.int64))
    return _dataset("digits", tuple("0123456789"), train, held_out, Augmentation(shift_px=resolution // 12, flip=False))


def folder(path: Path, resolution: int) -> Dataset:
    """Images in PATH/train/CLASS and PATH/test/CLASS, or in PATH/CLASS, of which a fifth of each class is then held out.

    Every image is decoded once and kept as 8-bit RGB.

    Raises:
        SearchError: no such folder, no images, fewer than two classes, parts with different classes, or a file that is no image.
    """
    if not path.is_dir():
        raise SearchError(
            f"{path} is not a folder: --data folder:PATH needs PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg"
        )
    name = f"folder:{path}"
    augmentation = Augmentation(shift_px=resolution // 8, flip=True)
    if (path / "train").is_dir() and (path / "test").is_dir():
        labels, others = _classes(path / "train"), _classes(path / "test")
        if labels != others:
            raise SearchError(
                f"{path}/train and {path}/test must have the same classes; only one has {sorted(set(labels) ^ set(others))[0]!r}"
            )
        return _dataset(name, labels, _decode(path / "train", labels, resolution), _decode(path / "test", labels, resolution), augmentation)
    labels = _classes(path)
    for label in labels:
        if len(_image_files(path / label)) < 2:
            raise SearchError(f"{path / label} has only one image: a class needs at least 2, one of them is held out")
    every = _decode(path, labels, resolution)
    return _dataset(name, labels, *_stratified(every.images, every.labels), augmentation)


def _dataset(name: str, labels: tuple[str, ...], train: Split, held_out: Split, augmentation: Augmentation) -> Dataset:
    # Classes mixed, always in the same way: a batch, or the first few images, then stand for all.
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    held_out = Split(images=held_out.images[order], labels=held_out.labels[order])
    # Channel by channel: all of a large set as floats would be four times its size.
    channels = [train.images[:, index].to(torch.float32) / 255 for index in range(3)]
    preprocessing = Preprocessing(
        size=(train.images.shape[2], train.images.shape[3]),
        mean=_triple([round(float(channel.mean()), 6) for channel in channels]),
        std=_triple([max(round(float(channel.std()), 6), 1e-3) for channel in channels]),
    )
    return Dataset(name=name, labels=labels, train=train, held_out=held_out, preprocessing=preprocessing, augmentation=augmentation)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _stratified(images: Tensor, labels: Tensor) -> tuple[Split, Split]:
    # The seed is fixed: runs with different seeds are compared on the same held-out images.
    generator = torch.Generator().manual_seed(0)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(1, round(HELD_OUT * len(rows)))
        held_out[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return Split(images=images[~held_out], labels=labels[~held_out]), Split(images=images[held_out], labels=labels[held_out])


def _classes(path: Path) -> tuple[str, ...]:
    labels = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and _image_files(entry))
    if not labels:
        raise SearchError(f"{path} has no images: expected one folder a class, {path}/CLASS/*.jpg (also {', '.join(SUFFIXES)})")
    if len(labels) < 2:
        raise SearchError(f"{path} has only one class with images, {labels[0]!r}: a classifier needs at least 2 folders")
    for label in labels:
        _require_text(label)
    return tuple(labels)


def _require_text(name: str) -> None:
    """Refuse a name that no file of a run could hold, before there is a run."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SearchError(f"{name!r} is not UTF-8, and a run records it as text: rename it") from error


def _image_files(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)


_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX")
"""What PIL turns to RGB as a viewer would: 16 bits would be cut off at 255, and CMYK needs a profile."""

_OF_DECODERS = (OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, MemoryError, TypeError, struct.error, zlib.error)
"""What PIL's decoders raise for damaged files."""


def _decode(path: Path, labels: Sequence[str], resolution: int) -> Split:
    from PIL import Image

    files = [(file, index) for index, label in enumerate(labels) for file in _image_files(path / label)]
    images = np.empty((len(files), resolution, resolution, 3), dtype=np.uint8)
    for row, (file, _) in enumerate(files):
        try:
            with open_regular(file) as opened, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels are an error
                with Image.open(opened) as image:
                    if image.mode not in _MODES:
                        raise FileError(file, f"is of mode {image.mode}, which is not 8-bit RGB or grey")
                    rgb = image.convert("RGB")
        except FileError as error:
            raise SearchError(f"{error}: fix or remove it") from error
        except _OF_DECODERS as error:
            raise SearchError(f"{file} cannot be read as an image ({one_line(error, 100)}): fix or remove it") from error
        except Image.DecompressionBombError as error:
            raise SearchError(f"{file} has too many pixels: {one_line(error, 200)}") from error
        images[row] = np.asarray(rgb.resize((resolution, resolution), Image.Resampling.BILINEAR))
    return Split(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([index for _, index in files], dtype=torch.int64),
    )
