"""Image classification as a task: images of classes, and the losses towards their labels and towards a teacher."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from msgspec import Struct
from torch import Tensor, nn

from deploy.metric import ACCURACY, Metric
from search.architecture import Preprocessing
from search.augment import Augmentation, Images, augment
from search.distill import classification_loss
from search.errors import SearchError
from search.image_files import ImageFiles
from search.methods.settings import Settings
from search.space import Space
from search.task import Batch, Loss, Rows, Statistics, Task
from search.transforms import parse

Logits = Float[Tensor, "images classes"]
Labels = Int[Tensor, " images"]
Scalar = Float[Tensor, ""]


class Split(Struct, frozen=True, kw_only=True):
    """Images and their classes."""

    images: Tensor | ImageFiles
    """UInt8 [images, 3, height, width]"""
    labels: Tensor
    """Int64 [images]"""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Tensor) -> "Split":
        """Some of them, by their indices or by a mask."""
        images = self.images.part(rows) if isinstance(self.images, ImageFiles) else self.images[rows]
        return Split(images=images, labels=self.labels[rows])


@final
@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Training images, held-out images, and how to show them to a network."""

    metric: ClassVar[Metric] = ACCURACY  # pyright: ignore[reportIncompatibleVariableOverride]
    name: str
    """as `data.load` was asked for it"""
    labels: tuple[str, ...]
    """names of the classes"""
    train: Split
    held_out: Split
    """in an order that mixes the classes"""
    preprocessing: Preprocessing  # pyright: ignore[reportIncompatibleVariableOverride]
    augmentation: Augmentation

    def sha256(self) -> str:
        """Hash of every pixel and label of both parts; of images that are not kept in memory, of names and sizes of their files."""
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            images = split.images
            digest.update(images.sha256() if isinstance(images, ImageFiles) else memoryview(images.numpy()))  # pyright: ignore[reportArgumentType]
            digest.update(memoryview(split.labels.numpy()))  # pyright: ignore[reportArgumentType]
        return digest.hexdigest()

    def normalise(self, images: Images) -> Float[Tensor, "batch 3 height width"]:
        """What the network is fed with."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (images / 255 - mean) / std

    def training_batch(self, rows: Rows, generator: torch.Generator | None) -> Batch:
        """Training images as a network is shown them, and their labels."""
        images = self.train.images[rows]
        if generator is not None:
            images = augment(images, self.augmentation, generator)
        return self.normalise(images), self.train.labels[rows]

    def expect(self, rows: Rows) -> None:
        """Let workers decode images that are not kept in memory."""
        if isinstance(self.train.images, ImageFiles):
            self.train.images.expect(rows)

    def held_out_batch(self, rows: Rows) -> Batch:
        """Held-out images as a network is shown them, and their labels."""
        return self.normalise(self.held_out.images[rows]), self.held_out.labels[rows]

    def loss(self, outputs: Logits, targets: Labels) -> Scalar:
        """Cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def statistics(self, outputs: Logits, targets: Labels) -> Statistics:
        """Whether the largest output is the label: 0 or 1."""
        return (outputs.argmax(1) == targets)[:, None].float()

    def training_loss(self, settings: Settings, teacher: nn.Module | None) -> Loss:
        """Cross-entropy with smoothed labels, and the match with a teacher where there is one."""

        def loss(outputs: Logits, targets: Labels, inputs: Tensor) -> Scalar:
            with torch.no_grad():
                said = None if teacher is None else teacher(inputs)
            return classification_loss(
                outputs,
                targets,
                label_smoothing=settings.label_smoothing,
                teacher=said,
                kind=settings.distill,
                weight=settings.distill_weight,
                temperature=settings.temperature,
            )

        return loss

    def prepared(self, settings: Settings) -> "Classification":
        """With the augmentation of the settings."""
        return self.augmented(settings.augment)

    def augmented(self, changes: str) -> "Classification":
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

    def require_fit(self, space: Space) -> None:
        """Check classes and size.

        Raises:
            SearchError: the space has others.
        """
        classes, size = len(self.labels), self.preprocessing.size
        if space.classes != classes:
            raise SearchError(f"{self.name} has {classes} classes, the space {space.classes}: profile and search with --classes {classes}")
        if space.input_shape[1:] != size:
            raise SearchError(f"the images of {self.name} are {size}, the space takes {space.input_shape[1:]}: load them at its resolution")

    def of_classes(self, classes: Sequence[int]) -> "Classification":
        """The images of some classes alone, whose labels are then their places among these.

        Args:
            classes: indices of different classes, ascending.
        """

        def only(split: Split) -> Split:
            places = torch.full((len(self.labels),), -1).scatter(0, torch.tensor(classes), torch.arange(len(classes)))[split.labels]
            found = split.part(places >= 0)
            return Split(images=found.images, labels=places[places >= 0])

        labels = tuple(self.labels[index] for index in classes)
        return replace(self, labels=labels, train=only(self.train), held_out=only(self.held_out))
