"""Learning rates over the steps of a phase, as factors on the full one."""

import math
from typing import Literal

Schedule = Literal["cosine", "exponential"]


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
