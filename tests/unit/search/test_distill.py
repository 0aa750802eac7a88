import math

import pytest
import torch
from torch import nn

from search.distill import classification_loss, soft_cross_entropy, soft_divergence

LAMBDA, T = 0.7, 4.0


@pytest.fixture
def said():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), teacher, torch.tensor([0, 3, 1, 1, 2])


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def tas_by_loop(logits, teacher, labels) -> float:
    """Eq. 10 of TAS, with Eq. 9 in it, image by image and class by class."""
    total = 0.0
    for z, z_hat, y in zip(logits.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        match = -sum(p * math.log(q) for p, q in zip(softmax(z_hat, T), softmax(z, T), strict=True))
        total += -LAMBDA * math.log(softmax(z)[y]) + (1 - LAMBDA) * match
    return total / len(labels)


def hinton_by_loop(logits, teacher, labels) -> float:
    total = 0.0
    for z, z_hat, y in zip(logits.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        divergence = sum(p * math.log(p / q) for p, q in zip(softmax(z_hat, T), softmax(z, T), strict=True))
        total += -LAMBDA * math.log(softmax(z)[y]) + (1 - LAMBDA) * T**2 * divergence
    return total / len(labels)


@pytest.mark.parametrize(("kind", "by_loop"), [("tas", tas_by_loop), ("hinton", hinton_by_loop)])
def test_distillation_is_the_sum_over_images_and_classes(said, kind, by_loop):
    logits, teacher, labels = said
    loss = classification_loss(logits, labels, teacher=teacher, kind=kind, weight=LAMBDA, temperature=T)
    assert loss.item() == pytest.approx(by_loop(logits, teacher, labels), rel=1e-12)


def test_the_divergence_has_t_squared_times_the_gradient_of_the_cross_entropy(said):
    """Both differ by the teacher's entropy, which is constant."""
    logits, teacher, _ = said
    (one,), (other,) = (
        torch.autograd.grad(match(logits, teacher, T), logits) for match in (soft_cross_entropy, soft_divergence)
    )
    assert torch.allclose(other, T**2 * one, rtol=1e-10, atol=1e-14)


def test_matching_is_complete_where_both_say_the_same(said):
    _, teacher, _ = said
    assert soft_divergence(teacher, teacher, T).item() == pytest.approx(0, abs=1e-12)


def test_smoothing_is_of_the_labels_alone(said):
    logits, teacher, labels = said
    smooth = {"label_smoothing": 0.1}
    hard = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(classification_loss(logits, labels, **smooth), hard)
    assert torch.equal(classification_loss(logits, labels, teacher=teacher, kind="tas", weight=1.0, **smooth), hard)
    mixed = classification_loss(logits, labels, teacher=teacher, kind="tas", weight=0.25, **smooth)
    assert torch.allclose(mixed, 0.25 * hard + 0.75 * soft_cross_entropy(logits, teacher, T), rtol=1e-12)
