"""Verdicts on a network that was rewritten step by step: do its outputs agree, how good is it, is it within its budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float, Int, Shaped

from deploy.errors import DeployError
from latency import Measurement

Arithmetic = Literal["fp64", "fp32", "fp16"]
Verdict = Literal["reference", "passed", "failed", "not run"]
BudgetVerdict = Literal["met", "missed", "unsure", "no budget", "not run"]

LIMITS: dict[str, float] = {"fp64": 1e-10, "fp32": 1e-5, "fp16": 1e-2}
"""Largest difference, relative to the largest value of the reference output, that still counts as the same network.

In float64 a rewrite is proved; float32 leaves room for another order of summation; half precision rounds each of many layers by up to
5e-4, and 1e-2 is what its users have settled on.
"""

Samples = Float[np.ndarray, "samples *input"]
Labels = Int[np.ndarray, " samples"]
Outputs = Shaped[np.ndarray, "samples *output"]


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an output lies from another."""

    max_abs: float
    """largest absolute difference"""
    relative: float
    """the same over the largest absolute value of the reference; over 1 where the reference is zero"""
    cosine: float
    """smallest cosine between the outputs of any sample"""
    top1: float | None
    """share of the samples whose largest output is the same one; None where the output is not one vector a sample"""


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the network, against the form before and against the first."""

    name: str
    precision: Arithmetic
    verdict: Verdict
    limit: float
    """for both relative differences"""
    previous: Agreement | None = None
    """against the nearest step before that ran"""
    first: Agreement | None = None
    """against the reference"""
    accuracy: float | None = None
    """share of the samples whose largest output is their label"""
    reason: str = ""
    """of a step that failed or was not run"""


SAME_WITHIN = 0.02
"""Two latencies are the same where their ratio is surely this near to 1."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One latency over another."""

    word: Literal["SAME", "FASTER", "SLOWER", "UNSURE"]
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Rung:
    """One form of the network that can be run, or the reason why it cannot."""

    name: str
    precision: Arithmetic
    run: Callable[[Samples], Outputs] | str


class CannotRun(DeployError):
    """This machine cannot run a form of the network: it is `not run`, and nothing is said about its outputs."""


def climb(rungs: Sequence[Rung], samples: Samples, labels: Labels | None = None) -> tuple[list[Step], dict[str, Outputs]]:
    """Run every form of a network on the same samples and compare each with the one before and with the first.

    Returns:
        A step for each rung, and by name the outputs of those that ran and are finite.

    Raises:
        DeployError: the first form does not run, or its outputs are not finite.
    """
    steps: list[Step] = []
    outputs: dict[str, Outputs] = {}
    for rung in rungs:
        step = Step(name=rung.name, precision=rung.precision, verdict="not run", limit=LIMITS[rung.precision])
        try:
            output = _run(rung, samples)
        except CannotRun as error:
            steps.append(msgspec.structs.replace(step, reason=str(error)))
        except DeployError as error:
            steps.append(msgspec.structs.replace(step, verdict="failed", reason=str(error)))
        else:
            steps.append(_judge(step, output, list(outputs.values()), labels))
            outputs[rung.name] = output
        if not outputs:
            raise DeployError(f"nothing can be compared with the first form of the network, {rung.name}: {steps[-1].reason}")
    return steps, outputs


def _run(rung: Rung, samples: Samples) -> Outputs:
    if isinstance(rung.run, str):
        raise CannotRun(rung.run)
    output = rung.run(samples)
    if bad := int((~np.isfinite(output)).sum()):
        raise DeployError(f"{bad} of {output.size} output values are infinite or not a number")
    return output


def _judge(step: Step, output: Outputs, earlier: Sequence[Outputs], labels: Labels | None) -> Step:
    step = msgspec.structs.replace(step, accuracy=accuracy(output, labels))
    if not earlier:
        return msgspec.structs.replace(step, verdict="reference")
    previous, first = agreement(output, earlier[-1]), agreement(output, earlier[0])
    worst = max(previous.relative, first.relative)
    holds = worst <= step.limit
    return msgspec.structs.replace(
        step,
        verdict="passed" if holds else "failed",
        previous=previous,
        first=first,
        reason="" if holds else f"the output differs by {worst:.1e} of its scale, more than {step.limit:.0e}",
    )


def agreement(output: Outputs, reference: Shaped[np.ndarray, "..."]) -> Agreement:
    """Compare two finite outputs for the same samples.

    Raises:
        DeployError: they have different shapes.
    """
    if output.shape != reference.shape:
        raise DeployError(f"an output of shape {list(output.shape)} cannot be compared with one of shape {list(reference.shape)}")
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (output, reference))
    max_abs, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~(a.any(axis=1) | b.any(axis=1))
    cosine = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return Agreement(
        max_abs=max_abs,
        relative=max_abs / (scale or 1.0),
        cosine=float(cosine.min()),
        top1=float((a.argmax(1) == b.argmax(1)).mean()) if output.ndim == 2 else None,
    )


def accuracy(output: Outputs, labels: Labels | None) -> float | None:
    """Share of the samples whose largest output is their label; None without labels, or where the output is not one vector a sample."""
    if labels is None or output.ndim != 2:
        return None
    return float((output.argmax(1) == labels).mean())


def judge_latency(low_us: float, high_us: float, budget_us: float | None) -> BudgetVerdict:
    """Whether a latency is within its budget: met or missed where its whole interval is on one side, else unsure."""
    if budget_us is None:
        return "no budget"
    if high_us <= budget_us:
        return "met"
    return "missed" if low_us > budget_us else "unsure"


def compare_latency(one: Measurement, other: Measurement) -> Comparison:
    """How fast `one` is, measured against `other`; the interval is what remains if both medians lie anywhere in their own intervals."""
    low, high = one.low_us / other.high_us, one.high_us / other.low_us
    if low >= 1 - SAME_WITHIN and high <= 1 + SAME_WITHIN:
        word = "SAME"
    elif high < 1:
        word = "FASTER"
    else:
        word = "SLOWER" if low > 1 else "UNSURE"
    return Comparison(word=word, ratio=one.median_us / other.median_us, low=low, high=high)
