"""What a network is trained for: samples, a loss, and the metric that it is judged by. `search.classification` is one such task."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import default_collate

from deploy.metric import Figure, Metric, Quality
from deploy.samples import Samples, Tensors
from latency.errors import one_line
from reparam.exported import RUN_ERRORS
from search.architecture import Preprocessing
from search.errors import SearchError
from search.methods.settings import Settings
from search.space import Space

Batch = tuple[Tensor, Any]
"""Inputs [samples, ...], and their targets: a tensor, or a tree of tensors that all have the samples along their first dimension."""
Loss = Callable[[Any, Any, Tensor], Tensor]
"""Of a network's outputs, targets and inputs; the mean over the samples."""
Rows = Int[Tensor, " samples"]
Statistics = Float[Tensor, "samples figures"]


class Task(ABC):
    """What a network is trained for.

    A task of one's own sets `metric`, `train` and `held_out`, and says what the loss is and what the metric is made of. The samples may be
    any map-style data set of pairs of an input and its target, such as a `torch.utils.data.TensorDataset`.

    A metric is a function of means over samples: `statistics` gives some figures of each sample, and `value` makes the metric of their
    means. The accuracy is the mean of one figure that is 0 or 1; for a mean intersection over union the figures are the pixels of the
    intersection and of the union, class by class, and the value is the mean of their ratios.

    Attributes:
        metric: its name, its unit, and whether more is better.
        train: training samples; those that are held out decide nothing that is trained.
        held_out: what `metric` is measured on.
        name: as a run records it, such as `digits` or `FILE.py:FUNCTION`.
        file_sha256: hash of the file that makes the task; "" where there is none.
        labels: names of the network's outputs, where they are classes.
        preprocessing: from an image file to an input, where that is what an input is made of.
    """

    metric: Metric
    train: Any
    held_out: Any
    name: str = ""
    file_sha256: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        """Mean over the samples of a batch, differentiable.

        Args:
            outputs: of the network.
            targets: of the batch.
        """

    @abstractmethod
    def statistics(self, outputs: Any, targets: Any) -> Statistics:
        """What the metric is made of: the same number of figures of each sample; arguments as above."""

    def value(self, means: Float[Tensor, " figures"]) -> Float[Tensor, ""]:
        """The metric, of the means of the figures of many samples; differentiable, for its standard error. The first figure by default."""
        return means[0]

    def training_batch(self, rows: Rows, generator: torch.Generator | None) -> Batch:
        """Training samples by their indices; augmented where there is a generator, which is then the only source of randomness."""
        return _collated([self.train[row] for row in rows.tolist()])

    def expect(self, rows: Rows) -> None:  # noqa: B027 -- most tasks have nothing to prepare
        """Begin to prepare the training samples of the next batch, while the network is trained on the one before."""

    def held_out_batch(self, rows: Rows) -> Batch:
        """Held-out samples by their indices."""
        return _collated([self.held_out[row] for row in rows.tolist()])

    def training_loss(self, settings: Settings, teacher: nn.Module | None) -> Loss:
        """What the settings of a method train a network towards.

        Args:
            settings: of the method.
            teacher: in evaluation mode, where the network is to match one.
        """
        return lambda outputs, targets, _: self.loss(outputs, targets)

    def prepared(self, settings: Settings) -> "Task":
        """The same task as the settings of a method change it.

        Raises:
            SearchError: the task cannot be changed like that.
        """
        if settings.augment != "auto":
            raise SearchError(f"--augment {settings.augment} is for images of classes: {self.name} augments in its training_batch")
        if settings.distill != "none":
            raise SearchError(f"--distill {settings.distill} matches probabilities of classes, which {self.name} has none of: leave it out")
        return self

    def require_fit(self, space: Space) -> None:
        """Check that the networks of a space can be trained for the task.

        Raises:
            SearchError: they take other inputs, or give what the loss or the metric cannot read.
        """
        if not len(self.train) or not len(self.held_out):
            raise SearchError(f"{self.name} has {len(self.train)} training and {len(self.held_out)} held-out samples: both are needed")
        inputs, targets = self.held_out_batch(torch.arange(min(2, len(self.held_out))))
        if inputs.shape[1:] != space.input_shape:
            found, wanted = ("x".join(map(str, shape)) for shape in (inputs.shape[1:], space.input_shape))
            raise SearchError(f"an input of {self.name} is {found}, {space.name} takes {wanted}: profile and search with --input {found}")
        try:
            with torch.random.fork_rng(), torch.no_grad():
                outputs = space.module().eval()(inputs)
                loss, figures = self.loss(outputs, targets), self.statistics(outputs, targets)
        except RUN_ERRORS as error:
            raise SearchError(f"{self.name} cannot judge what {space.name} gives: {type(error).__name__}: {one_line(error)}") from error
        if loss.ndim:
            raise SearchError(f"the loss of {self.name} has the shape {list(loss.shape)}, wanted one number")
        if figures.ndim != 2 or len(figures) != len(inputs):
            raise SearchError(
                f"the statistics of {self.name} have the shape {list(figures.shape)}, wanted {len(inputs)} x figures: one row a sample"
            )

    def sha256(self) -> str:
        """Hash of what determines the task."""
        return self.file_sha256

    @final
    def quality(self, network: nn.Module, inputs: Tensor, targets: Any) -> Quality:
        """How good what ships is on some samples, by what it gives in the order in which the network gives it.

        Args:
            network: as it is trained.
            inputs: of the samples.
            targets: of them all.
        """
        with torch.no_grad():
            _, structure = tree_flatten(network.eval()(inputs[:1]))

        def of(outputs: Tensors, samples: Samples) -> Figure:
            each = [torch.from_numpy(samples.joined(output)) for output in outputs.values()]
            value, error = self.judged(self.statistics(tree_unflatten(each, structure), targets))
            return Figure.about(value, error)

        return Quality(self.metric, of)

    @final
    def training_batches(self, size: int, generator: torch.Generator, rows: Rows | None = None) -> "TrainingBatches":
        """One epoch in random order, augmented; what does not fill a batch is left out this time.

        Args:
            size: samples a batch; all samples make one batch where there are fewer.
            generator: the only source of randomness.
            rows: indices of the training samples to show, such as one of `data.random_parts`; all by default.
        """
        return TrainingBatches(self, size, generator, torch.arange(len(self.train)) if rows is None else rows)

    @final
    def plain_batches(self, size: int, rows: Rows) -> Iterator[Batch]:
        """Training samples as they are, in the order of their indices."""
        return (self.training_batch(part, None) for part in rows.split(size))

    @final
    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """All held-out samples, always in the same order."""
        return (self.held_out_batch(part) for part in torch.arange(len(self.held_out)).split(size))

    @final
    def judged(self, statistics: Statistics) -> tuple[float, float]:
        """The metric of some samples, and its standard error, by the delta method: the value is linear in the means near to them.

        Raises:
            SearchError: it is not a finite number.
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
        """A value of the metric, checked.

        Raises:
            SearchError: it is not a finite number.
        """
        if not math.isfinite(value):
            raise SearchError(f"the {self.metric.name} of {self.name} is {value}: let `value` return a number for whatever a network gives")
        return value


def _collated(samples: list[tuple[Any, Any]]) -> Batch:
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
        batches = order[: len(self) * self._size].split(self._size)
        self._task.expect(batches[0])
        for rows, coming in itertools.zip_longest(batches, batches[1:]):
            if coming is not None:
                self._task.expect(coming)
            yield self._task.training_batch(rows, self._generator)
