"""Verdicts on a network that was rewritten step by step: do its outputs agree, how good is it, is it within its budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float, Int, Shaped

from deploy.errors import DeployError
from latency import Measurement
from latency.errors import require

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
Output = Shaped[np.ndarray, "samples *output"]
Outputs = Mapping[str, Shaped[np.ndarray, "samples ..."]]
"""By name; the same names in every form of a network."""


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of samples, with its score interval of 95 % (Wilson 1927, "Probable inference, the law of succession")."""

    share: float
    low: float
    high: float


def share(found: Share) -> str:
    """A share with its interval, for people."""
    return f"{found.share:.2%} ({found.low:.1%} to {found.high:.1%})"


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an output lies from another."""

    max_abs: float
    """largest absolute difference"""
    scale: float
    """largest absolute value of the reference"""
    relative: float
    """the difference over the scale; over 1 where the reference is zero"""
    cosine: float
    """smallest cosine between the outputs of any sample"""
    top1: Share | None
    """of the samples whose largest output is the same one; None where the output is not one vector a sample"""
    kl: float | None
    """Kullback-Leibler divergence from the reference, in nats, mean over samples, outputs taken as logits; None as `top1`"""


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the network, against the form before and against the first."""

    name: str
    precision: Arithmetic
    verdict: Verdict
    limit: float
    """for both relative differences of every output"""
    previous: dict[str, Agreement] = {}
    """of each output, against the nearest step before that ran"""
    first: dict[str, Agreement] = {}
    """of each output, against the reference"""
    accuracy: Share | None = None
    """of the samples whose largest output is their label"""
    reason: str = ""
    """of a step that failed or was not run"""

    @property
    def worst(self) -> Agreement | None:
        """The output that lies farthest from the reference; None where none was compared."""
        return max(self.first.values(), key=lambda found: found.relative, default=None)


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
        DeployError: no form runs, or the outputs of the first that does are not finite.
        MissingExtra: Polygraphy is not installed.
    """
    steps: list[Step] = []
    outputs: dict[str, Outputs] = {}
    for rung in rungs:
        step = Step(name=rung.name, precision=rung.precision, verdict="not run", limit=LIMITS[rung.precision])
        try:
            found = _run(rung, samples)
            step = _judge(step, found, list(outputs.values()), labels)
            outputs[rung.name] = found
        except CannotRun as error:
            step = msgspec.structs.replace(step, reason=str(error))
        except DeployError as error:
            step = msgspec.structs.replace(step, verdict="failed", reason=str(error))
        steps.append(step)
        if not outputs and (step.verdict == "failed" or rung is rungs[-1]):
            raise DeployError(f"nothing can be compared with the first form of the network, {rung.name}: {step.reason}")
    return steps, outputs


def _run(rung: Rung, samples: Samples) -> Outputs:
    if isinstance(rung.run, str):
        raise CannotRun(rung.run)
    outputs = rung.run(samples)
    for name, output in outputs.items():
        if bad := int((~np.isfinite(output)).sum()):
            of = f" of {name}" * (len(outputs) > 1)
            raise DeployError(f"{bad} of {output.size} output values{of} are infinite or not a number")
    return outputs


def _judge(step: Step, outputs: Outputs, earlier: Sequence[Outputs], labels: Labels | None) -> Step:
    step = msgspec.structs.replace(step, accuracy=accuracy(outputs, labels))
    if not earlier:
        return msgspec.structs.replace(step, verdict="reference")
    (previous, near), (first, near_too) = (compare(outputs, reference, step.limit) for reference in (earlier[-1], earlier[0]))
    relative, name = max((found.relative, name) for against in (previous, first) for name, found in against.items())
    output = f"output {name}" if len(outputs) > 1 else "the output"
    return msgspec.structs.replace(
        step,
        verdict="passed" if near and near_too else "failed",
        previous=previous,
        first=first,
        reason="" if near and near_too else f"{output} differs by {relative:.1e} of its scale, more than {step.limit:.0e}",
    )


def compare(outputs: Outputs, reference: Outputs, limit: float) -> tuple[dict[str, Agreement], bool]:
    """Compare finite outputs for the same samples; Polygraphy finds the differences and judges them.

    Args:
        outputs: of one form of a network.
        reference: of another.
        limit: largest difference of an output, as a share of the largest absolute value of its reference.

    Returns:
        Of each output how far it is off, and whether all are within the limit.

    Raises:
        DeployError: they have other names or shapes.
        MissingExtra: Polygraphy is not installed.
    """
    if list(outputs) != list(reference):
        raise DeployError(f"outputs {', '.join(outputs)} cannot be compared with outputs {', '.join(reference)}")
    for name, output in outputs.items():
        if output.shape != reference[name].shape:
            raise DeployError(f"an output of shape {list(output.shape)} cannot be compared with one of shape {list(reference[name].shape)}")
    scales = {name: float(np.abs(output).max()) for name, output in reference.items()}
    one, other = ({name: output.astype(np.float64) for name, output in values.items()} for values in (outputs, reference))
    found = _polygraphy(one, other, {name: limit * (scale or 1.0) for name, scale in scales.items()})
    return {
        name: Agreement(
            max_abs=max_abs,
            scale=scales[name],
            relative=max_abs / (scales[name] or 1.0),
            cosine=_cosine(one[name], other[name]),
            top1=_share(one[name].argmax(1) == other[name].argmax(1)) if _is_logits(one[name]) else None,
            kl=_divergence(one[name], other[name]) if _is_logits(one[name]) else None,
        )
        for name, (max_abs, _) in found.items()
    }, all(near for _, near in found.values())


def _polygraphy(one: Outputs, other: Outputs, atol: dict[str, float]) -> dict[str, tuple[float, bool]]:
    """Of each output the largest absolute difference, and whether it is within its tolerance."""
    require("polygraphy", "")
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    results = IterationResult(runner_name="one"), IterationResult(runner_name="other")
    for result, values in zip(results, (one, other), strict=True):
        result.update(values)
    # Its check of a statistic, or of Python's floats, imports torch where that is installed; without a relative tolerance this is the same.
    tolerances = {name: np.float64(value) for name, value in atol.items()}
    func = SimpleCompareFunc(atol=tolerances, rtol=np.float64(0), check_error_stat="elemwise")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it says on the console what is in the result
        compared = func(*results)
    return {name: (float(result.max_absdiff), bool(result)) for name, result in compared.items()}


def _is_logits(output: Output) -> bool:
    return output.ndim == 2 and output.shape[1] > 1


def _cosine(one: Output, other: Output) -> float:
    a, b = (values.reshape(len(values), -1) for values in (one, other))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~(a.any(axis=1) | b.any(axis=1))
    return float(np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)).min())


def _divergence(one: Output, reference: Output) -> float:
    logs = [values - values.max(axis=1, keepdims=True) for values in (one, reference)]
    log_q, log_p = (values - np.log(np.exp(values).sum(axis=1, keepdims=True)) for values in logs)
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))


_Z = 1.959964  # standard deviations of a 95 % interval


def _share(hits: Shaped[np.ndarray, " samples"]) -> Share:
    """Wilson (1927), the score interval: unlike the normal one it is right at 100 %, too."""
    n, p = len(hits), float(hits.mean())
    middle, half = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + _Z**2 / n) for sign in (-1, 1))
    return Share(share=p, low=max(0.0, min(low, p)), high=min(1.0, max(high, p)))


def accuracy(outputs: Outputs, labels: Labels | None) -> Share | None:
    """Share of the samples whose largest output is their label; None without labels, or where there is not one output of one vector."""
    if labels is None or len(outputs) != 1:
        return None
    (output,) = outputs.values()
    return _share(output.argmax(1) == labels) if _is_logits(output) else None


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
