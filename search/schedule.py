"""Learning rates over the steps of a phase, as factors on the full one."""

import math

from search.methods.settings import Settings


def factor(settings: Settings, step: int, *, epoch_steps: int, epochs: int, warmup: int = 0) -> float:
    """Factor on the learning rate at a step of a phase, by the schedule of the settings.

    Args:
        settings: of the method.
        step: from the start of the phase.
        epoch_steps: steps of an epoch.
        epochs: of the phase.
        warmup: steps at its start in which the rate rises.
    """
    if settings.schedule == "cosine":
        return cosine(step, epochs * epoch_steps, warmup)
    return exponential(step, every=settings.lr_decay_epochs * epoch_steps, rate=settings.lr_decay, warmup=warmup)


def cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linearly up over `warmup` steps, then half a cosine down to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def exponential(step: int, *, every: float, rate: float, warmup: int) -> float:
    """Factor on the learning rate: linearly up over `warmup` steps, then times `rate` each time that `every` steps are over.

    Args:
        step: from the start of the phase, the warm-up included.
        every: number of steps, not necessarily a whole one.
        rate: above 0, at most 1.
        warmup: number of steps.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return rate ** math.floor(step / every)
