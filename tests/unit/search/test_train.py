import dataclasses
import math

import msgspec
import pytest
import torch
from torch import nn

from search import SearchError
from search.data import random_parts
from search.runtime import TrainingRuntime
from search.train import TrainingPart, evaluate, interleaved, make_optimizer, train_epoch


def part(optimizer, batches, *, factor=1.0, penalty=lambda: 0.0):
    def loss(logits, labels, images):
        return nn.functional.cross_entropy(logits, labels) + penalty()

    return TrainingPart(optimizers=[optimizer], batches=batches, loss=loss, factor=lambda _: factor)


@pytest.fixture
def trained(tiny):
    torch.manual_seed(0)
    runtime, network = TrainingRuntime(), tiny.module()
    optimizer = make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=0.0)
    wrapped, (optimizer,) = runtime.setup(network, [optimizer])
    return runtime, network, wrapped, optimizer


def test_a_network_learns(trained, stripes):
    runtime, _, wrapped, optimizer = trained
    before = evaluate(wrapped, stripes.held_out_batches(16), task=stripes, runtime=runtime)
    generator = torch.Generator().manual_seed(0)
    scores = [
        train_epoch(wrapped, [part(optimizer, stripes.training_batches(16, generator))], task=stripes, runtime=runtime)
        for _ in range(5)
    ]
    after = evaluate(wrapped, stripes.held_out_batches(16), task=stripes, runtime=runtime)
    assert scores[-1].loss < scores[0].loss / 2
    assert before.score < 0.8 < 0.95 < after.score
    assert after.loss < before.loss


def test_the_penalty_is_in_the_loss_and_trained_against(trained, stripes):
    runtime, network, wrapped, optimizer = trained
    bias = network.head[2].bias
    score = train_epoch(
        wrapped,
        [
            part(
                optimizer,
                stripes.training_batches(16, torch.Generator()),
                penalty=lambda: 100 * (bias.sum() - 3) ** 2 / 200,
            )
        ],
        task=stripes,
        runtime=runtime,
    )
    assert score.loss > 1
    assert bias.sum().item() == pytest.approx(3, abs=1)


def test_the_factor_scales_every_step(trained, stripes):
    runtime, network, wrapped, optimizer = trained
    before = {name: value.clone() for name, value in network.named_parameters()}
    train_epoch(
        wrapped,
        [part(optimizer, stripes.training_batches(16, torch.Generator()), factor=0.0)],
        task=stripes,
        runtime=runtime,
    )
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_accuracy_is_the_share_of_right_images(trained, stripes):
    runtime, _, wrapped, _ = trained
    wrapped.eval()
    with torch.no_grad():
        right = wrapped(stripes.normalise(stripes.held_out.images)).argmax(1) == stripes.held_out.labels
    score = evaluate(wrapped, stripes.held_out_batches(7), task=stripes, runtime=runtime)
    assert score.score == right.float().mean().item()
    flipped = dataclasses.replace(
        stripes, held_out=msgspec.structs.replace(stripes.held_out, labels=1 - stripes.held_out.labels)
    )
    assert evaluate(wrapped, flipped.held_out_batches(7), task=stripes, runtime=runtime).score == pytest.approx(
        1 - score.score
    )


def test_batch_statistics_stand_in_for_running_ones_that_are_off(trained, stripes):
    runtime, network, wrapped, optimizer = trained
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        train_epoch(wrapped, [part(optimizer, stripes.training_batches(16, generator))], task=stripes, runtime=runtime)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.fill_(100.0)
    assert evaluate(wrapped, stripes.held_out_batches(32), task=stripes, runtime=runtime).score < 0.8
    assert (
        evaluate(wrapped, stripes.held_out_batches(32), task=stripes, runtime=runtime, batch_statistics=True).score
        > 0.95
    )
    assert all((norm.running_mean == 100).all() and norm.track_running_stats for norm in norms)
    assert evaluate(wrapped, stripes.held_out_batches(32), task=stripes, runtime=runtime).score < 0.8


def test_divergence_is_an_error(trained, stripes):
    runtime, _, wrapped, optimizer = trained
    with pytest.raises(SearchError, match=r"training diverged \(loss nan\).*lower learning rate"):
        train_epoch(
            wrapped,
            [part(optimizer, stripes.training_batches(16, torch.Generator()), penalty=lambda: torch.tensor(math.nan))],
            task=stripes,
            runtime=runtime,
        )


@pytest.mark.parametrize(
    ("counts", "order"),
    [
        ([3], "aaa"),
        ([2, 2], "abab"),
        ([4, 1], "aabaa"),
        ([1, 4], "bbabb"),
        ([4, 2], "abaaba"),
        ([0, 2], "bb"),
        ([2, 2, 1], "abcab"),
    ],
)
def test_parts_are_spread_evenly(counts, order):
    assert "".join("abc"[part] for part in interleaved(counts)) == order


def test_parts_take_turns_and_move_their_own_weights_alone(trained, stripes):
    """Each on its own images, in an order that lets both end together; what one's loss says of the other's weights is forgotten."""
    runtime, network, wrapped, _ = trained
    halves = [[network.a], [network.b, network.c, network.head]]
    groups = [[p for module in half for p in module.parameters()] for half in halves]
    optimizers = [
        torch.optim.SGD([{"params": group, "peak_lr": lr}], lr=lr) for group, lr in zip(groups, (0.0, 0.1), strict=True)
    ]
    seen = []

    def loss(name):
        def of(logits, labels, images):
            seen.append((name, len(labels)))
            return nn.functional.cross_entropy(logits, labels)

        return of

    generator = torch.Generator()
    parts = [
        TrainingPart(
            optimizers=[o], batches=stripes.training_batches(16, generator, rows), loss=loss(name), factor=lambda _: 1.0
        )
        for o, rows, name in zip(optimizers, random_parts(64, (0.75, 0.25), generator), "ab", strict=True)
    ]
    before = {name: value.clone() for name, value in network.named_parameters()}
    stepped = []
    train_epoch(wrapped, parts, task=stripes, runtime=runtime, stepped=lambda: stepped.append(len(seen)))
    assert seen == [("a", 16), ("a", 16), ("b", 16), ("a", 16)]
    assert stepped == [1, 2, 3, 4]
    moved = {name.split(".")[0] for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"b", "c", "head"}


def test_a_score_says_what_training_took(trained, stripes):
    """One convolution keeps its input, and what its activation made; the network's own weights are there anyway."""
    runtime = TrainingRuntime()
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    wrapped, (optimizer,) = runtime.setup(network, [make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=0.0)])
    batches = stripes.training_batches(16, torch.Generator())
    height, width = next(iter(batches))[0].shape[2:]
    score = train_epoch(
        wrapped, [part(optimizer, stripes.training_batches(16, torch.Generator()))], task=stripes, runtime=runtime
    )
    assert score.steps == len(batches)
    assert score.seconds > 0
    assert score.saved_bytes == 4 * 16 * (
        3 * height * width + 4 * height * width + 4
    )  # the pooled image is what the last layer keeps
    evaluated = evaluate(wrapped, stripes.held_out_batches(16), task=stripes, runtime=runtime)
    assert (evaluated.steps, evaluated.saved_bytes) == (0, 0)
