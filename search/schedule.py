"""Learning-rate schedules over the steps of a phase, as factors on the full rate."""

import math

from search.methods.settings import Settings


def factor(settings: Settings, step: int, *, epoch_steps: int, epochs: int, warmup: int = 0) -> float:
    """Return the factor on the learning rate at a step of a phase, by the schedule of the settings.

    Args:
        settings: settings of the method.
        step: step from the start of the phase.
        epoch_steps: steps per epoch.
        epochs: epochs of the phase.
        warmup: number of initial steps with a rising rate.
    """
    if settings.schedule == "cosine":
        return cosine(step, epochs * epoch_steps, warmup)
    return exponential(step, every=settings.lr_decay_epochs * epoch_steps, rate=settings.lr_decay, warmup=warmup)


def cosine(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate.

    A linear rise over `warmup` steps, then half a cosine down to 0 at `steps`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def exponential(step: int, *, every: float, rate: float, warmup: int) -> float:
    """Return the factor on the learning rate.

    A linear rise over `warmup` steps, then a multiplication by `rate` after every `every` steps.

    Args:
        step: step from the start of the phase, including the warm-up.
        every: number of steps, not necessarily an integer.
        rate: above 0, at most 1.
        warmup: number of steps.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return rate ** math.floor(step / every)
