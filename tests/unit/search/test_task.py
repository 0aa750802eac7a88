import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import search
from deploy.samples import Samples
from search import Metric, SearchError
from search.methods.settings import PasSettings
from search.spaces import of_module


class Halves(search.Task):
    """Which half of an image is brighter, pixel by pixel: two outputs a pixel, and the mean of the ratios of both classes."""

    metric = Metric(name="mIoU", unit="%")

    def __init__(self, count: int = 12) -> None:
        bright = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
        images = bright.expand(-1, 3, -1, -1) + 0.01
        self.train = TensorDataset(images, bright[:, 0].long())
        self.held_out = TensorDataset(images[:5], bright[:5, 0].long())

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def statistics(self, outputs, targets):
        found = outputs.argmax(1)
        each = [((found == c) & (targets == c), (found == c) | (targets == c)) for c in range(2)]
        return torch.stack([hits.flatten(1).sum(1) for pair in zip(*each, strict=True) for hits in pair], dim=1).float()

    def value(self, means):
        return (means[:2] / means[2:]).mean()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )


@pytest.fixture
def space():
    with torch.random.fork_rng():
        return of_module(network(), torch.zeros(1, 3, 8, 8), name="net.py:make")


def test_a_metric_of_all_samples_together_has_the_error_that_a_bootstrap_has():
    task, draw = Halves(), torch.Generator().manual_seed(1)
    rows = 64 * torch.rand(2000, 4, generator=draw, dtype=torch.float64) + torch.tensor([0.0, 0.0, 60.0, 60.0])
    value, error = task.judged(rows)
    assert value == pytest.approx(
        ((rows[:, 0].sum() / rows[:, 2].sum() + rows[:, 1].sum() / rows[:, 3].sum()) / 2).item()
    )
    again = [task.judged(rows[torch.randint(2000, (2000,), generator=draw)])[0] for _ in range(400)]
    assert error == pytest.approx(np.std(again), rel=0.15)


def test_the_error_of_a_share_is_that_of_a_binomial():
    class Share(Halves):
        value = search.Task.value

    value, error = Share().judged(torch.tensor([[1.0]] * 30 + [[0.0]] * 10))
    assert (value, error) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 40)))


def test_batches_are_collated_of_any_data_set_and_all_of_them_are_shown():
    task = Halves()
    shown = torch.cat([masks for _, masks in task.training_batches(4, torch.Generator())])
    assert torch.equal(shown.flatten(1).sum(1).sort().values, task.train.tensors[1].flatten(1).sum(1).sort().values)
    held_out = list(task.held_out_batches(2))
    assert torch.equal(torch.cat([images for images, _ in held_out]), task.held_out.tensors[0])


def test_what_ships_is_judged_as_the_trained_network_is(space):
    task, trained = Halves(), network()
    images, masks = task.held_out_batch(torch.arange(5))
    quality = task.quality(trained, images, masks)
    with torch.no_grad():
        outputs = trained(images)
    value, error = task.judged(task.statistics(outputs, masks))
    samples = Samples({"x": images[:, None].numpy()}, batch=1, count=5)
    found = quality.of({"y": outputs[:, None].numpy()}, samples)
    assert (quality.metric.name, found.value) == ("mIoU", pytest.approx(value))
    assert (found.low, found.high) == (pytest.approx(value - 1.959964 * error), pytest.approx(value + 1.959964 * error))


class OtherShape(Halves):
    def loss(self, outputs, targets):
        return (outputs - targets.view(-1)).mean()


class ManyLosses(Halves):
    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


class OneFigure(Halves):
    def statistics(self, outputs, targets):
        return super().statistics(outputs, targets).sum(0)


class Empty(Halves):
    def __init__(self):
        super().__init__()
        self.held_out = []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (OtherShape(), r"^T cannot judge outputs of net.py:make: RuntimeError: The size of tensor"),
        (ManyLosses(), r"^the loss of T has the shape \[2, 8, 8\], wanted one number$"),
        (OneFigure(), r"^the statistics of T have the shape \[4\], wanted 2 x figures: one row per sample$"),
        (Empty(), r"^T has 12 training and 0 held-out samples: both are needed$"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_before_the_training(space, task, message):
    task.name = "T"
    with pytest.raises(SearchError, match=message):
        task.require_fit(space)


def test_inputs_of_another_size_are_refused_by_name(space):
    task = Halves()
    task.name, task.held_out = "T", TensorDataset(torch.zeros(3, 3, 4, 8), torch.zeros(3, 4, 8))
    with pytest.raises(
        SearchError, match="^an input of T is 3x4x8, net.py:make takes 3x8x8: profile and search with --input 3x4x8$"
    ):
        task.require_fit(space)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "flip"}, "--augment flip is for images of classes"),
        ({"distill": "tas"}, "--distill tas matches probabilities"),
    ],
)
def test_what_is_of_classes_alone_is_refused(settings, message):
    with pytest.raises(SearchError, match=message):
        Halves().prepared(PasSettings(**settings))


def test_a_metric_that_is_no_number_is_named():
    task = Halves()
    task.name = "T"
    with pytest.raises(SearchError, match="^the mIoU of T is nan: let `value` return a finite number"):
        task.judged(torch.zeros(3, 4))
