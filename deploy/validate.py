"""Verdicts on a network rewritten step by step.

Whether its outputs agree, its quality, and whether it meets its budget.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from deploy.errors import DeployError
from deploy.metric import ACCURACY, Z_95, Figure, Quality
from deploy.samples import Samples, Tensors
from latency import Measurement
from latency.errors import import_extra
from latency.values import Count
from latency.values import Share as Fraction

Arithmetic = Literal["fp64", "fp32", "fp16", "bf16", "int8"]
Verdict = Literal["reference", "passed", "failed", "not run"]
BudgetVerdict = Literal["met", "missed", "unsure", "no budget", "not run"]

LIMITS: dict[str, float] = {"fp64": 1e-10, "fp32": 1e-5, "fp16": 1e-2, "bf16": 8e-2, "int8": 5e-2}
"""Largest difference, relative to the largest value of the reference output, between equal networks; for outputs of
whole numbers or booleans, the largest share of values that may differ.

float64 proves a rewrite; float32 allows for a different order of summation; half precision rounds each of many layers
by up to 5e-4, and 1e-2 is the common limit among its users. bfloat16 rounds by 8 times as much. In INT8, a value
between two steps may be rounded to either, 8e-3 of the scale apart, in every layer.
"""

Distance = Annotated[float, msgspec.Meta(ge=0)]

Labels = Int[np.ndarray, " samples"]
Output = Shaped[np.ndarray, "calls *output"]


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of samples with its 95 % score interval (Wilson 1927, "Probable inference, the law of succession")."""

    share: Fraction
    low: Fraction
    high: Fraction


def format_share(share: Share) -> str:
    """Format a share with its interval."""
    return f"{share.share:.2%} ({share.low:.1%} to {share.high:.1%})"


class Agreement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Difference between an output and its reference."""

    max_abs: Distance
    """largest absolute difference"""
    scale: Distance
    """largest absolute value of the reference"""
    relative: Distance
    """difference divided by the scale, or by 1 if the reference is zero; for whole numbers and booleans, share of
    values that differ"""
    cosine: float
    """smallest cosine between the outputs of any call"""
    top1: Share | None
    """share of samples with the same largest output; None if the output is not one vector per sample"""
    kl: Distance | None
    """mean Kullback-Leibler divergence from the reference over samples, in nats, with outputs as logits; None as for
    `top1`"""
    not_finite: Count = 0
    """number of values that are NaN, or the same infinity, in both: equal, and excluded from the numbers above"""
    rounding: Distance = 0.0
    """relative spacing of neighbouring numbers if the output itself is float16, which is added to the limit of the
    step"""

    def within(self, limit: float) -> bool:
        """Return whether the difference is within the limit of a step."""
        return self.relative <= limit + self.rounding


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the network, compared with the previous form and the first."""

    name: str
    precision: Arithmetic
    verdict: Verdict
    limit: Annotated[float, msgspec.Meta(gt=0, le=1)]
    """limit on both relative differences of every output"""
    previous: dict[str, Agreement] = {}
    """difference of each output from the previous step that ran"""
    first: dict[str, Agreement] = {}
    """difference of each output from the reference"""
    score: Figure | None = None
    """value of the metric, if there is one"""
    reason: str = ""
    """why a step failed or was not run"""

    @property
    def worst(self) -> Agreement | None:
        """Largest difference of an output from the reference; None if none was compared."""
        return max(self.first.values(), key=lambda agreement: agreement.relative, default=None)

    @property
    def note(self) -> str:
        """Values that are NaN or infinite in this form and in the reference, which the verdict does not cover.

        "" if there are none.
        """
        counts = [
            f"{agreement.not_finite} values of {name}" for name, agreement in self.first.items() if agreement.not_finite
        ]
        return f"{', '.join(counts)} are NaN or infinite, as in the reference" if counts else ""


SAME_WITHIN = 0.02
"""Two latencies are the same if the interval of their ratio is this close to 1."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ratio of two latencies."""

    word: Literal["SAME", "FASTER", "SLOWER", "UNSURE"]
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class RunnableForm:
    """One form of the network with its runner, or the reason why it cannot run."""

    name: str
    precision: Arithmetic
    run: Callable[[Tensors], Tensors] | str
    hint: str = ""
    """what may help if its outputs differ"""

    def at(self, end: str) -> "RunnableForm":
        """Return the form at an end of its input shapes."""
        return replace(self, name=f"{self.name} at {end}")


class CannotRun(DeployError):
    """This machine cannot run a form of the network: its verdict is `not run`, and its outputs are unknown."""


def validate_forms(
    rungs: Sequence[RunnableForm], samples: Samples, quality: Quality | None = None
) -> tuple[list[Step], dict[str, Tensors]]:
    """Run every form of a network on the same samples and compare each with the previous one and with the first.

    Returns:
        A step for each rung, and the outputs by name of those that ran and could be compared.

    Raises:
        DeployError: no form runs, or an output of the first that does has no finite values.
        RunFailed: a run exceeds the time limit.
        MissingExtra: Polygraphy is not installed.
    """
    steps: list[Step] = []
    outputs: dict[str, Tensors] = {}
    for rung in rungs:
        step = Step(name=rung.name, precision=rung.precision, verdict="not run", limit=LIMITS[rung.precision])
        try:
            form_outputs = _run_form(rung, samples)
            step = _judge_form(step, form_outputs, list(outputs.values()), samples, quality, rung.hint)
            outputs[rung.name] = form_outputs
        except CannotRun as error:
            step = msgspec.structs.replace(step, reason=str(error))
        except DeployError as error:
            step = msgspec.structs.replace(step, verdict="failed", reason=str(error))
        steps.append(step)
        if not outputs and (step.verdict == "failed" or rung is rungs[-1]):
            raise DeployError(f"nothing can be compared with the first form of the network, {rung.name}: {step.reason}")
    return steps, outputs


def _run_form(rung: RunnableForm, samples: Samples) -> Tensors:
    if isinstance(rung.run, str):
        raise CannotRun(rung.run)
    outputs = rung.run(samples.inputs)
    for name, output in outputs.items():
        if output.size and not np.isfinite(output).any():
            what = "NaN" if np.isnan(output).all() else "infinite or NaN"
            raise DeployError(f"all {output.size} values of {name!r} are {what}")
    return outputs


def _judge_form(
    step: Step, outputs: Tensors, earlier: Sequence[Tensors], samples: Samples, quality: Quality | None, hint: str
) -> Step:
    step = msgspec.structs.replace(step, score=quality and quality.of(outputs, samples))
    if not earlier:
        return msgspec.structs.replace(step, verdict="reference")
    compared = (compare_outputs(outputs, reference, step.limit, samples) for reference in (earlier[-1], earlier[0]))
    (previous, near), (first, near_too) = compared
    excesses = (
        (agreement.relative - agreement.rounding, name, agreement)
        for against in (previous, first)
        for name, agreement in against.items()
    )
    _, name, worst = max(excesses, key=lambda one: one[0])
    return msgspec.structs.replace(
        step,
        verdict="passed" if near and near_too else "failed",
        previous=previous,
        first=first,
        reason="" if near and near_too else "; ".join(filter(None, (_off(name, worst, step.limit, outputs), hint))),
    )


def _off(name: str, worst: Agreement, limit: float, outputs: Tensors) -> str:
    output = f"output {name}" if len(outputs) > 1 else "the output"
    if outputs[name].dtype.kind == "f":
        return f"{output} differs by {worst.relative:.1e} of its scale, more than {limit + worst.rounding:.0e}"
    return f"{worst.relative:.2%} of the values of {output} differ, more than {limit:.0e}"


def compare_outputs(
    outputs: Tensors, reference: Tensors, limit: float, samples: Samples
) -> tuple[dict[str, Agreement], bool]:
    """Compare outputs of the same calls, of any shape; Polygraphy computes and judges the differences.

    Values that are NaN or the same infinity in both are equal.

    Args:
        outputs: outputs of one form of a network.
        reference: outputs of another form.
        limit: largest difference of an output, as a share of the largest absolute value of its reference; for whole
            numbers and booleans, the largest share of values that may differ.
        samples: samples that both were run on.

    Returns:
        The difference of each output, and whether all are within the limit, which is increased for a float16 output by
        its rounding.

    Raises:
        DeployError: names or shapes differ, or a value is NaN or infinite in only one of them.
        MissingExtra: Polygraphy is not installed.
    """
    if list(outputs) != list(reference):
        raise DeployError(f"outputs {', '.join(outputs)} cannot be compared with outputs {', '.join(reference)}")
    for name, output in outputs.items():
        if output.shape != reference[name].shape:
            shapes = [list(values.shape[1:]) for values in (output, reference[name])]
            raise DeployError(f"output {name!r} of shape {shapes[0]} cannot be compared with one of shape {shapes[1]}")
    agreements = {name: _agreement(name, output, reference[name], limit, samples) for name, output in outputs.items()}
    return {name: agreement for name, (agreement, _) in agreements.items()}, all(
        near for _, near in agreements.values()
    )


def _agreement(name: str, output: Output, reference: Output, limit: float, samples: Samples) -> tuple[Agreement, bool]:
    equal = _same_not_finite(name, output, reference)
    one, expected = (np.where(equal, 0.0, values.astype(np.float64)) for values in (output, reference))
    scale = float(np.abs(expected).max(initial=0.0))
    rounding = float(np.finfo(np.float16).eps) if output.dtype == np.float16 else 0.0
    max_abs, near = _polygraphy(one, expected, (limit + rounding) * (scale or 1.0))
    relative = max_abs / (scale or 1.0)
    if reference.dtype.kind != "f":
        relative = float((one != expected).mean()) if one.size else 0.0
        near = relative <= limit
    logits = [_logits(values, samples) for values in (output, reference)]
    a, b = (None, None) if logits[0] is None or logits[1] is None else _finite(logits[0], logits[1])
    return Agreement(
        max_abs=max_abs,
        scale=scale,
        relative=relative,
        cosine=_cosine(one, expected),
        top1=None if a is None or b is None else _share(a.argmax(1) == b.argmax(1)),
        kl=None if a is None or b is None else _divergence(a, b),
        not_finite=int(equal.sum()),
        rounding=rounding,
    ), near


def _same_not_finite(name: str, output: Output, reference: Output) -> Bool[np.ndarray, "..."]:
    """Return a mask of values that are NaN or the same infinity in both.

    Raises:
        DeployError: a value is NaN or infinite in only one of them.
    """
    equal = (np.isnan(output) & np.isnan(reference)) | (np.isinf(output) & (output == reference))
    for one, where, instead in ((output, "are", "the reference is not"), (reference, "are not", "the reference is")):
        for kind, test in (("NaN", np.isnan), ("infinite", np.isinf)):
            if count := int((test(one) & ~equal).sum()):
                raise DeployError(f"{count} of {output.size} values of {name!r} {where} {kind} where {instead}")
    return equal


def _polygraphy(one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."], atol: float) -> tuple[float, bool]:
    """Return the largest absolute difference of finite values, and whether it is within a tolerance."""
    import_extra("polygraphy", "")
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    results = IterationResult(runner_name="one"), IterationResult(runner_name="other")
    for result, values in zip(results, (one, other), strict=True):
        result.update({"values": values.ravel()})
    # Its checks of other statistics, or of Python floats, import torch if installed; without a relative tolerance, this
    # one is equivalent.
    func = SimpleCompareFunc(atol={"values": np.float64(atol)}, rtol=np.float64(0), check_error_stat="elemwise")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it prints what is in the result
        (result,) = func(*results).values()
    return float(result.max_absdiff), bool(result)


def _logits(output: Output, samples: Samples) -> Shaped[np.ndarray, "samples classes"] | None:
    """Return one vector per sample, or None if the output has another form."""
    if output.ndim != 3 or output.shape[1] != samples.batch or output.shape[2] < 2 or output.dtype.kind != "f":
        return None
    return samples.joined(output)


def _finite(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return both in float64 without samples that have non-finite values; None if no samples are left."""
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


def _share(hits: Shaped[np.ndarray, " samples"]) -> Share:
    """Return a share with its score interval (Wilson 1927), which, unlike the normal one, also holds at 100 %."""
    n, p = len(hits), float(hits.mean())
    middle, half = p + Z_95**2 / (2 * n), Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + Z_95**2 / n) for sign in (-1, 1))
    return Share(share=p, low=max(0.0, min(low, p)), high=min(1.0, max(high, p)))


def accuracy(labels: Labels) -> Quality:
    """Return the accuracy: share of samples whose largest output is their label.

    None unless there is one output of one vector each.
    """

    def of(outputs: Tensors, samples: Samples) -> Figure | None:
        logits = _logits(next(iter(outputs.values())), samples) if len(outputs) == 1 else None
        if logits is None:
            return None
        hits = _share(logits.argmax(1) == labels)
        return Figure(value=hits.share, low=hits.low, high=hits.high)

    return Quality(ACCURACY, of)


def judge_latency(low_us: float, high_us: float, budget_us: float | None) -> BudgetVerdict:
    """Judge whether a latency is within its budget.

    Met or missed if its whole interval is on one side, otherwise unsure.
    """
    if budget_us is None:
        return "no budget"
    if high_us <= budget_us:
        return "met"
    return "missed" if low_us > budget_us else "unsure"


def compare_latency(one: Measurement, other: Measurement) -> Comparison:
    """Return the latency of `one` relative to `other`; the interval covers all medians within their own intervals."""
    low, high = one.low_us / other.high_us, one.high_us / other.low_us
    if low >= 1 - SAME_WITHIN and high <= 1 + SAME_WITHIN:
        word = "SAME"
    elif high < 1:
        word = "FASTER"
    else:
        word = "SLOWER" if low > 1 else "UNSURE"
    return Comparison(word=word, ratio=one.median_us / other.median_us, low=low, high=high)
