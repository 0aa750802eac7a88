"""Image classification as a task: labelled images, and losses against labels and a teacher."""

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
    """Images and their labels."""

    images: Tensor | ImageFiles
    """UInt8 [images, 3, height, width]"""
    labels: Tensor
    """Int64 [images]"""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Tensor) -> "Split":
        """Select images by indices or by a mask."""
        images = self.images.part(rows) if isinstance(self.images, ImageFiles) else self.images[rows]
        return Split(images=images, labels=self.labels[rows])


@final
@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Training images, held-out images, and their preprocessing and augmentation."""

    metric: ClassVar[Metric] = ACCURACY  # pyright: ignore[reportIncompatibleVariableOverride]
    name: str
    """the name passed to `data.load`"""
    labels: tuple[str, ...]
    """names of the classes"""
    train: Split
    held_out: Split
    """with the classes shuffled"""
    preprocessing: Preprocessing  # pyright: ignore[reportIncompatibleVariableOverride]
    augmentation: Augmentation

    def sha256(self) -> str:
        """Return a hash of all pixels and labels of both splits; for images on disk, of file names and sizes."""
        digest = hashlib.sha256()
        for split in (self.train, self.held_out):
            images = split.images
            digest.update(images.sha256() if isinstance(images, ImageFiles) else memoryview(images.numpy()))  # pyright: ignore[reportArgumentType]
            digest.update(memoryview(split.labels.numpy()))  # pyright: ignore[reportArgumentType]
        return digest.hexdigest()

    def normalise(self, images: Images) -> Float[Tensor, "batch 3 height width"]:
        """Scale images to [0, 1] and normalise them by mean and standard deviation."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, 3, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (images / 255 - mean) / std

    def training_batch(self, rows: Rows, generator: torch.Generator | None) -> Batch:
        """Return preprocessed training images, augmented if there is a generator, and their labels."""
        images = self.train.images[rows]
        if generator is not None:
            images = augment(images, self.augmentation, generator)
        return self.normalise(images), self.train.labels[rows]

    def expect(self, rows: Rows) -> None:
        """Start decoding images on disk in worker processes."""
        if isinstance(self.train.images, ImageFiles):
            self.train.images.expect(rows)

    def held_out_batch(self, rows: Rows) -> Batch:
        """Return preprocessed held-out images and their labels."""
        return self.normalise(self.held_out.images[rows]), self.held_out.labels[rows]

    def loss(self, outputs: Logits, targets: Labels) -> Scalar:
        """Return the cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def statistics(self, outputs: Logits, targets: Labels) -> Statistics:
        """Return 1 if the largest output is the label, else 0."""
        return (outputs.argmax(1) == targets)[:, None].float()

    def training_loss(self, settings: Settings, teacher: nn.Module | None) -> Loss:
        """Return the cross-entropy with smoothed labels, combined with the distillation loss if there is a teacher."""

        def loss(outputs: Logits, targets: Labels, inputs: Tensor) -> Scalar:
            with torch.no_grad():
                teacher_logits = None if teacher is None else teacher(inputs)
            return classification_loss(
                outputs,
                targets,
                label_smoothing=settings.label_smoothing,
                teacher=teacher_logits,
                kind=settings.distill,
                weight=settings.distill_weight,
                temperature=settings.temperature,
            )

        return loss

    def prepared(self, settings: Settings) -> "Classification":
        """Return the task with the augmentation of the settings."""
        return self.augmented(settings.augment)

    def augmented(self, changes: str) -> "Classification":
        """Return the task with other training transforms, in the syntax of `transforms.parse`.

        Raises:
            SearchError: `changes` cannot be parsed, or a transform does not fit the images.
            MissingExtra: torchvision is needed but not installed.
        """
        transforms = parse(changes)
        if transforms is None:
            return self
        red, green, blue = (round(255 * mean) for mean in self.preprocessing.mean)
        augmented = replace(self, augmentation=Augmentation(transforms=transforms, fill=(red, green, blue)))
        for transform in transforms:
            if transform.name in ("crop", "cutout") and transform.amount >= min(self.preprocessing.size):
                raise SearchError(
                    f"--augment {transform.name}:{transform.amount:g} is no smaller than the images, "
                    f"{self.preprocessing.size}"
                )
        augment(
            self.train.images[:1], augmented.augmentation, torch.Generator()
        )  # raises now if torchvision is missing
        return augmented

    def require_fit(self, space: Space) -> None:
        """Require a space with the same classes and image size.

        Raises:
            SearchError: the space has other classes or another image size.
        """
        classes, size = len(self.labels), self.preprocessing.size
        if space.classes != classes:
            raise SearchError(
                f"{self.name} has {classes} classes, the space {space.classes}: profile and search with --classes "
                f"{classes}"
            )
        if space.input_shape[1:] != size:
            raise SearchError(
                f"the images of {self.name} are {size}, the space takes {space.input_shape[1:]}: load them at its "
                "resolution"
            )

    def of_classes(self, classes: Sequence[int]) -> "Classification":
        """Return the task restricted to some classes, relabelled by their position in `classes`.

        Args:
            classes: distinct class indices, ascending.
        """

        def only(split: Split) -> Split:
            new_labels = torch.full((len(self.labels),), -1).scatter(
                0, torch.tensor(classes), torch.arange(len(classes))
            )[split.labels]
            kept = new_labels >= 0
            return Split(images=split.part(kept).images, labels=new_labels[kept])

        labels = tuple(self.labels[index] for index in classes)
        return replace(self, labels=labels, train=only(self.train), held_out=only(self.held_out))
