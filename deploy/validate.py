"""Verdicts on a network that was rewritten step by step: do its outputs agree, how good is it, is it within its budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from deploy.errors import DeployError
from deploy.metric import ACCURACY, Figure, Quality
from deploy.samples import Samples, Tensors
from latency import Measurement
from latency.errors import require
from latency.values import Count
from latency.values import Share as Fraction

Arithmetic = Literal["fp64", "fp32", "fp16", "bf16", "int8"]
Verdict = Literal["reference", "passed", "failed", "not run"]
BudgetVerdict = Literal["met", "missed", "unsure", "no budget", "not run"]

LIMITS: dict[str, float] = {"fp64": 1e-10, "fp32": 1e-5, "fp16": 1e-2, "bf16": 8e-2, "int8": 5e-2}
"""Largest difference, relative to the largest value of the reference output, that still counts as the same network; of an output of whole
numbers or booleans, the largest share of values that may differ.

In float64 a rewrite is proved; float32 leaves room for another order of summation; half precision rounds each of many layers by up to 5e-4,
and 1e-2 is what its users have settled on. bfloat16 rounds by 8 times as much. In INT8 a value between two steps goes to either of them,
8e-3 of the scale apart, in every layer.
"""

Distance = Annotated[float, msgspec.Meta(ge=0)]

Labels = Int[np.ndarray, " samples"]
Output = Shaped[np.ndarray, "calls *output"]


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of samples, with its score interval of 95 % (Wilson 1927, "Probable inference, the law of succession")."""

    share: Fraction
    low: Fraction
    high: Fraction


def share(found: Share) -> str:
    """A share with its interval, for people."""
    return f"{found.share:.2%} ({found.low:.1%} to {found.high:.1%})"


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an output lies from another."""

    max_abs: Distance
    """largest absolute difference"""
    scale: Distance
    """largest absolute value of the reference"""
    relative: Distance
    """the difference over the scale; over 1 where the reference is zero; of whole numbers and booleans the share of values that differ"""
    cosine: float
    """smallest cosine between the outputs of any call"""
    top1: Share | None
    """of the samples whose largest output is the same one; None where the output is not one vector a sample"""
    kl: Distance | None
    """Kullback-Leibler divergence from the reference, in nats, mean over samples, outputs taken as logits; None as `top1`"""
    not_finite: Count = 0
    """number of values that are NaN, or the same infinity, in both: equal, and left out of the numbers above"""
    rounding: Distance = 0.0
    """of an output that is itself float16 the distance of two neighbouring numbers: the limit of the step is larger by it"""

    def within(self, limit: float) -> bool:
        """Whether the difference is within the limit of a step."""
        return self.relative <= limit + self.rounding


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the network, against the form before and against the first."""

    name: str
    precision: Arithmetic
    verdict: Verdict
    limit: Annotated[float, msgspec.Meta(gt=0, le=1)]
    """for both relative differences of every output"""
    previous: dict[str, Agreement] = {}
    """of each output, against the nearest step before that ran"""
    first: dict[str, Agreement] = {}
    """of each output, against the reference"""
    score: Figure | None = None
    """the metric, where there is one"""
    reason: str = ""
    """of a step that failed or was not run"""

    @property
    def worst(self) -> Agreement | None:
        """The output that lies farthest from the reference; None where none was compared."""
        return max(self.first.values(), key=lambda found: found.relative, default=None)

    @property
    def note(self) -> str:
        """What a verdict does not say: values that are NaN or infinite in this form and in the reference; "" where there are none."""
        found = [f"{seen.not_finite} values of {name}" for name, seen in self.first.items() if seen.not_finite]
        return f"{', '.join(found)} are NaN or infinite, as in the reference" if found else ""


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
    run: Callable[[Tensors], Tensors] | str
    hint: str = ""
    """what may help where it is off"""

    def at(self, end: str) -> "Rung":
        """The same at an end of the shapes that its inputs may have."""
        return replace(self, name=f"{self.name} at {end}")


class CannotRun(DeployError):
    """This machine cannot run a form of the network: it is `not run`, and nothing is said about its outputs."""


def climb(rungs: Sequence[Rung], samples: Samples, quality: Quality | None = None) -> tuple[list[Step], dict[str, Tensors]]:
    """Run every form of a network on the same samples and compare each with the one before and with the first.

    Returns:
        A step for each rung, and by name the outputs of those that ran and could be compared.

    Raises:
        DeployError: no form runs, or an output of the first that does has no finite value.
        RunFailed: one does not end.
        MissingExtra: Polygraphy is not installed.
    """
    steps: list[Step] = []
    outputs: dict[str, Tensors] = {}
    for rung in rungs:
        step = Step(name=rung.name, precision=rung.precision, verdict="not run", limit=LIMITS[rung.precision])
        try:
            found = _run(rung, samples)
            step = _judge(step, found, list(outputs.values()), samples, quality, rung.hint)
            outputs[rung.name] = found
        except CannotRun as error:
            step = msgspec.structs.replace(step, reason=str(error))
        except DeployError as error:
            step = msgspec.structs.replace(step, verdict="failed", reason=str(error))
        steps.append(step)
        if not outputs and (step.verdict == "failed" or rung is rungs[-1]):
            raise DeployError(f"nothing can be compared with the first form of the network, {rung.name}: {step.reason}")
    return steps, outputs


def _run(rung: Rung, samples: Samples) -> Tensors:
    if isinstance(rung.run, str):
        raise CannotRun(rung.run)
    outputs = rung.run(samples.inputs)
    for name, output in outputs.items():
        if output.size and not np.isfinite(output).any():
            what = "NaN" if np.isnan(output).all() else "infinite or NaN"
            raise DeployError(f"all {output.size} values of {name!r} are {what}")
    return outputs


def _judge(step: Step, outputs: Tensors, earlier: Sequence[Tensors], samples: Samples, quality: Quality | None, hint: str) -> Step:
    step = msgspec.structs.replace(step, score=quality and quality.of(outputs, samples))
    if not earlier:
        return msgspec.structs.replace(step, verdict="reference")
    compared = (compare(outputs, reference, step.limit, samples) for reference in (earlier[-1], earlier[0]))
    (previous, near), (first, near_too) = compared
    seen = ((found.relative - found.rounding, name, found) for against in (previous, first) for name, found in against.items())
    _, name, worst = max(seen, key=lambda one: one[0])
    return msgspec.structs.replace(
        step,
        verdict="passed" if near and near_too else "failed",
        previous=previous,
        first=first,
        reason="" if near and near_too else "; ".join(filter(None, (_off(name, worst, step.limit, outputs), hint))),
    )


def _off(name: str, found: Agreement, limit: float, outputs: Tensors) -> str:
    output = f"output {name}" if len(outputs) > 1 else "the output"
    if outputs[name].dtype.kind == "f":
        return f"{output} differs by {found.relative:.1e} of its scale, more than {limit + found.rounding:.0e}"
    return f"{found.relative:.2%} of the values of {output} differ, more than {limit:.0e}"


def compare(outputs: Tensors, reference: Tensors, limit: float, samples: Samples) -> tuple[dict[str, Agreement], bool]:
    """Compare whole outputs of the same calls, whatever their shape; Polygraphy finds the differences and judges them.

    Values that are NaN or the same infinity in both are equal.

    Args:
        outputs: of one form of a network.
        reference: of another.
        limit: largest difference of an output, as a share of the largest absolute value of its reference; of whole numbers and booleans
            the largest share of values that differ.
        samples: what they are the outputs of.

    Returns:
        Of each output how far it is off, and whether all are within the limit, which is larger for a float16 output by its rounding.

    Raises:
        DeployError: they have other names or shapes, or a value is NaN or infinite in one of them alone.
        MissingExtra: Polygraphy is not installed.
    """
    if list(outputs) != list(reference):
        raise DeployError(f"outputs {', '.join(outputs)} cannot be compared with outputs {', '.join(reference)}")
    for name, output in outputs.items():
        if output.shape != reference[name].shape:
            shapes = [list(values.shape[1:]) for values in (output, reference[name])]
            raise DeployError(f"output {name!r} of shape {shapes[0]} cannot be compared with one of shape {shapes[1]}")
    found = {name: _agreement(name, output, reference[name], limit, samples) for name, output in outputs.items()}
    return {name: agreement for name, (agreement, _) in found.items()}, all(near for _, near in found.values())


def _agreement(name: str, output: Output, reference: Output, limit: float, samples: Samples) -> tuple[Agreement, bool]:
    alike = _alike(name, output, reference)
    one, other = (np.where(alike, 0.0, values.astype(np.float64)) for values in (output, reference))
    scale = float(np.abs(other).max(initial=0.0))
    rounding = float(np.finfo(np.float16).eps) if output.dtype == np.float16 else 0.0
    max_abs, near = _polygraphy(one, other, (limit + rounding) * (scale or 1.0))
    relative = max_abs / (scale or 1.0)
    if reference.dtype.kind != "f":
        relative = float((one != other).mean()) if one.size else 0.0
        near = relative <= limit
    logits = [_logits(values, samples) for values in (output, reference)]
    a, b = (None, None) if logits[0] is None or logits[1] is None else _finite(logits[0], logits[1])
    return Agreement(
        max_abs=max_abs,
        scale=scale,
        relative=relative,
        cosine=_cosine(one, other),
        top1=None if a is None or b is None else _share(a.argmax(1) == b.argmax(1)),
        kl=None if a is None or b is None else _divergence(a, b),
        not_finite=int(alike.sum()),
        rounding=rounding,
    ), near


def _alike(name: str, output: Output, reference: Output) -> Bool[np.ndarray, "..."]:
    """Where both are NaN or the same infinity.

    Raises:
        DeployError: a value is NaN or infinite in one of them alone.
    """
    alike = (np.isnan(output) & np.isnan(reference)) | (np.isinf(output) & (output == reference))
    for one, where, instead in ((output, "are", "the reference is not"), (reference, "are not", "the reference is")):
        for kind, test in (("NaN", np.isnan), ("infinite", np.isinf)):
            if count := int((test(one) & ~alike).sum()):
                raise DeployError(f"{count} of {output.size} values of {name!r} {where} {kind} where {instead}")
    return alike


def _polygraphy(one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."], atol: float) -> tuple[float, bool]:
    """The largest absolute difference of finite values, and whether it is within a tolerance."""
    require("polygraphy", "")
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    results = IterationResult(runner_name="one"), IterationResult(runner_name="other")
    for result, values in zip(results, (one, other), strict=True):
        result.update({"values": values.ravel()})
    # Its check of a statistic, or of Python's floats, imports torch where that is installed; without a relative tolerance this is the same.
    func = SimpleCompareFunc(atol={"values": np.float64(atol)}, rtol=np.float64(0), check_error_stat="elemwise")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it says on the console what is in the result
        (result,) = func(*results).values()
    return float(result.max_absdiff), bool(result)


def _logits(output: Output, samples: Samples) -> Shaped[np.ndarray, "samples classes"] | None:
    """One vector a sample; None where the output is something else."""
    if output.ndim != 3 or output.shape[1] != samples.batch or output.shape[2] < 2 or output.dtype.kind != "f":
        return None
    return samples.joined(output)


def _finite(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Both in float64 without the samples that have a value that is not finite; None where nothing is left."""
    rows = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    return (one[rows].astype(np.float64), other[rows].astype(np.float64)) if rows.any() else (None, None)


def _cosine(one: Output, other: Output) -> float:
    a, b = (values.reshape(len(values), -1) for values in (one, other))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~(a.any(axis=1) | b.any(axis=1))
    return float(np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)).min())


def _divergence(one: np.ndarray, reference: np.ndarray) -> float:
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


def accuracy(labels: Labels) -> Quality:
    """Share of the samples whose largest output is their label; none where there is not one output of one vector."""

    def of(outputs: Tensors, samples: Samples) -> Figure | None:
        logits = _logits(next(iter(outputs.values())), samples) if len(outputs) == 1 else None
        if logits is None:
            return None
        found = _share(logits.argmax(1) == labels)
        return Figure(value=found.share, low=found.low, high=found.high)

    return Quality(ACCURACY, of)


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
