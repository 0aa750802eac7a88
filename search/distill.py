"""Losses of a classifier against its labels and against the outputs of a trained network, the teacher."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from search.methods.settings import Distillation

Logits = Float[Tensor, "images classes"]
Labels = Int[Tensor, " images"]
Scalar = Float[Tensor, ""]


def soft_cross_entropy(logits: Logits, teacher: Logits, temperature: float) -> Scalar:
    """Return the cross-entropy with the teacher's softened probabilities, mean over the images (TAS, Eq. 9).

    Args:
        logits: outputs of the trained network.
        teacher: outputs of the teacher for the same images.
        temperature: T, which divides both.
    """
    return F.cross_entropy(logits / temperature, (teacher / temperature).softmax(1))


def soft_divergence(logits: Logits, teacher: Logits, temperature: float) -> Scalar:
    """Return T^2 times the KL divergence from the teacher's softened probabilities, mean over the images.

    Arguments as above.
    """
    target = (teacher / temperature).log_softmax(1)
    return (
        F.kl_div((logits / temperature).log_softmax(1), target, reduction="batchmean", log_target=True) * temperature**2
    )


def classification_loss(
    logits: Logits,
    labels: Labels,
    *,
    label_smoothing: float = 0.0,
    teacher: Logits | None = None,
    kind: Distillation = "none",
    weight: float = 0.9,
    temperature: float = 4.0,
) -> Scalar:
    """Return the cross-entropy with the labels, combined with a distillation loss if there is a teacher.

    Args:
        logits: outputs of the trained network.
        labels: the true classes.
        label_smoothing: share of the target probability that is spread over all classes.
        teacher: outputs of the teacher for the same images; None uses only the labels.
        kind: kind of distillation loss. `tas`: lambda * CE + (1 - lambda) * match (Dong and Yang 2019, Eq. 9 and 10).
            `hinton`: the match is a divergence times T^2, which keeps the scale of its gradient at any temperature
            (Hinton et al. 2015, Section 2).
        weight: lambda, the weight of the labels; the match has 1 - lambda.
        temperature: temperature of the match.
    """
    hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if kind == "none" or teacher is None:
        return hard
    match = soft_cross_entropy if kind == "tas" else soft_divergence
    return weight * hard + (1 - weight) * match(logits, teacher, temperature)
