"""Training tasks: samples, a loss, and a metric. `search.classification` is one of them."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import default_collate  # pyright: ignore[reportUnknownVariableType]

from deploy.metric import Figure, Metric, Quality
from deploy.samples import Samples, Tensors
from latency.errors import one_line
from reparam.exported import RUN_ERRORS
from reparam.typed_torch import fork_rng, from_numpy, to_list
from search.architecture import Preprocessing
from search.errors import SearchError
from search.methods.settings import Settings
from search.space import Space
from search.tensors import Tree

Batch = tuple[Tensor, Tree]
"""Inputs [samples, ...] and targets: a tensor, or a tree of tensors, with samples along the first dimension."""
Loss = Callable[[Tree, Tree, Tensor], Tensor]
"""Maps outputs, targets and inputs to the mean loss over the samples."""
Rows = Int[Tensor, " samples"]
Statistics = Float[Tensor, "samples figures"]


class Task(ABC):
    """A training task.

    A user-defined task sets `metric`, `train` and `held_out`, and implements `loss` and `statistics`. The samples may
    be any map-style data set of pairs of input and target, such as a `torch.utils.data.TensorDataset`.

    A metric is a function of means over samples: `statistics` returns some figures of each sample, and `value` computes
    the metric from their means. The accuracy is the mean of one figure that is 0 or 1. For a mean intersection over
    union, the figures are the pixels of intersection and union of each class, and the value is the mean of their
    ratios.

    Attributes:
        metric: name, unit, and whether more is better.
        train: training samples.
        held_out: samples that `metric` is measured on; they influence no training.
        name: name recorded by a run, such as `digits` or `FILE.py:FUNCTION`.
        file_sha256: hash of the file that defines the task; "" if there is none.
        labels: names of the network's outputs, if they are classes.
        preprocessing: preprocessing from image file to input, if inputs are images.
    """

    metric: Metric
    train: Any
    held_out: Any
    name: str = ""
    file_sha256: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    @abstractmethod
    def loss(self, outputs: Tree, targets: Tree) -> Float[Tensor, ""]:
        """Return the mean loss over the samples of a batch, differentiable.

        Args:
            outputs: outputs of the network.
            targets: targets of the batch.
        """

    @abstractmethod
    def statistics(self, outputs: Tree, targets: Tree) -> Statistics:
        """Return the figures of each sample that the metric is computed from; arguments as above."""

    def value(self, means: Float[Tensor, " figures"]) -> Float[Tensor, ""]:
        """Return the metric for given means of the figures, differentiable for its standard error.

        The first figure by default.
        """
        return means[0]

    def training_batch(self, rows: Rows, generator: torch.Generator | None) -> Batch:
        """Return training samples by index.

        They are augmented if there is a generator, which is then the only source of randomness.
        """
        indices: list[int] = to_list(rows)
        return _collated([self.train[index] for index in indices])

    def expect(self, rows: Rows) -> None:  # noqa: B027 -- most tasks have nothing to prepare
        """Start preparing the training samples of the next batch while the network trains on the current one."""

    def held_out_batch(self, rows: Rows) -> Batch:
        """Return held-out samples by index."""
        indices: list[int] = to_list(rows)
        return _collated([self.held_out[index] for index in indices])

    def training_loss(self, settings: Settings, teacher: nn.Module | None) -> Loss:
        """Return the training loss for the settings of a method.

        Args:
            settings: settings of the method.
            teacher: network to distil from, in evaluation mode; None for none.
        """
        return lambda outputs, targets, _: self.loss(outputs, targets)

    def prepared(self, settings: Settings) -> "Task":
        """Return the task adapted to the settings of a method.

        Raises:
            SearchError: the task does not support the settings.
        """
        if settings.augment != "auto":
            raise SearchError(
                f"--augment {settings.augment} is for images of classes: {self.name} augments in its training_batch"
            )
        if settings.distill != "none":
            raise SearchError(
                f"--distill {settings.distill} matches probabilities of classes, which {self.name} has none of: leave "
                "it out"
            )
        return self

    def require_fit(self, space: Space) -> None:
        """Require that the networks of a space can be trained for the task.

        Raises:
            SearchError: the networks take other inputs, or the loss or metric cannot handle their outputs.
        """
        if not len(self.train) or not len(self.held_out):
            raise SearchError(
                f"{self.name} has {len(self.train)} training and {len(self.held_out)} held-out samples: both are needed"
            )
        inputs, targets = self.held_out_batch(torch.arange(min(2, len(self.held_out))))
        if inputs.shape[1:] != space.input_shape:
            size, wanted = ("x".join(map(str, shape)) for shape in (inputs.shape[1:], space.input_shape))
            raise SearchError(
                f"an input of {self.name} is {size}, {space.name} takes {wanted}: profile and search with --input "
                f"{size}"
            )
        try:
            with fork_rng(), torch.no_grad():
                outputs = space.module().eval()(inputs)
                loss, figures = self.loss(outputs, targets), self.statistics(outputs, targets)
        except RUN_ERRORS as error:
            raise SearchError(
                f"{self.name} cannot judge outputs of {space.name}: {type(error).__name__}: {one_line(error)}"
            ) from error
        if loss.ndim:
            raise SearchError(f"the loss of {self.name} has the shape {list(loss.shape)}, wanted one number")
        if figures.ndim != 2 or len(figures) != len(inputs):
            raise SearchError(
                f"the statistics of {self.name} have the shape {list(figures.shape)}, wanted {len(inputs)} x figures: "
                "one row per sample"
            )

    def sha256(self) -> str:
        """Return a hash of what determines the task."""
        return self.file_sha256

    @final
    def quality(self, network: nn.Module, inputs: Tensor, targets: Tree) -> Quality:
        """Return the quality measure of deployed networks on given samples.

        Outputs are in the order of the trained network's.

        Args:
            network: the network in training form.
            inputs: inputs of the samples.
            targets: their targets.
        """
        with torch.no_grad():
            _, structure = tree_flatten(network.eval()(inputs[:1]))

        def of(outputs: Tensors, samples: Samples) -> Figure:
            tensors = [from_numpy(samples.joined(output)) for output in outputs.values()]
            value, error = self.judged(self.statistics(tree_unflatten(tensors, structure), targets))
            return Figure.about(value, error)

        return Quality(self.metric, of)

    @final
    def training_batches(self, size: int, generator: torch.Generator, rows: Rows | None = None) -> "TrainingBatches":
        """Return one epoch of augmented samples in random order; an incomplete last batch is left out.

        Args:
            size: samples per batch; if there are fewer samples, they form one batch.
            generator: the only source of randomness.
            rows: indices of the training samples, such as one of `data.random_parts`; all by default.
        """
        return TrainingBatches(self, size, generator, torch.arange(len(self.train)) if rows is None else rows)

    @final
    def plain_batches(self, size: int, rows: Rows) -> Iterator[Batch]:
        """Return training samples without augmentation, in the order of `rows`."""
        return (self.training_batch(part, None) for part in torch.split(rows, size))

    @final
    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """Return all held-out samples, always in the same order."""
        return (self.held_out_batch(part) for part in torch.split(torch.arange(len(self.held_out)), size))

    @final
    def judged(self, statistics: Statistics) -> tuple[float, float]:
        """Return the metric of some samples and its standard error.

        By the delta method, which linearises the value at the means.

        Raises:
            SearchError: the metric is not finite.
        """
        rows = statistics.detach().to("cpu", torch.float64)
        means = rows.mean(0).requires_grad_()
        with torch.enable_grad():
            value = self.value(means)
            (slope,) = torch.autograd.grad(value, means)
        self.require_finite(value.item())
        return value.item(), (rows @ slope).std(correction=0).item() / math.sqrt(len(rows))

    @final
    def require_finite(self, value: float) -> float:
        """Return a value of the metric after checking it.

        Raises:
            SearchError: the value is not finite.
        """
        if not math.isfinite(value):
            raise SearchError(
                f"the {self.metric.name} of {self.name} is {value}: let `value` return a finite number for any outputs"
            )
        return value


def _collated(samples: list[tuple[Tree, Tree]]) -> Batch:
    inputs, targets = default_collate(samples)
    return inputs, targets


@final
class TrainingBatches:
    """One epoch of some training samples; see `Task.training_batches`."""

    def __init__(self, task: Task, size: int, generator: torch.Generator, rows: Rows) -> None:
        self._task, self._size, self._generator, self._rows = task, min(size, len(rows)), generator, rows

    def __len__(self) -> int:
        return len(self._rows) // self._size

    def __iter__(self) -> Iterator[Batch]:
        order = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
        batches = torch.split(order[: len(self) * self._size], self._size)
        self._task.expect(batches[0])
        for rows, next_rows in itertools.zip_longest(batches, batches[1:]):
            if next_rows is not None:
                self._task.expect(next_rows)
            yield self._task.training_batch(rows, self._generator)
