import re
import subprocess
import sys

import numpy as np
import pytest

from deploy.errors import DeployError
from deploy.metric import ACCURACY
from deploy.samples import Samples
from deploy.validate import (
    CannotRun,
    RunnableForm,
    accuracy,
    compare_latency,
    compare_outputs,
    judge_latency,
    validate_forms,
)
from latency import Measurement
from latency.distribution import install_command
from latency.errors import MissingExtra

SAMPLES = Samples({"x": np.zeros((4, 1, 1), np.float32)}, batch=1, count=4)
LABELS = np.array([0, 1, 0, 1])
LOGITS = np.array([[2.0, 1.0], [0.0, 1.0], [4.0, 0.0], [3.0, 1.0]], np.float32)


def rung(name, output, precision="fp32"):
    return RunnableForm(name, precision, lambda _: {"y": output[:, None]})


def samples_for(output):
    return Samples({"x": np.zeros((len(output), 1))}, batch=1, count=len(output))


def agreement(output, reference):
    """Of a vector a sample, a sample a call."""
    return compare_outputs({"y": output[:, None]}, {"y": reference[:, None]}, 1e-5, samples_for(output))[0]["y"]


def verdicts(steps):
    return [step.verdict for step in steps]


def test_what_agrees_passes_with_its_numbers():
    steps, outputs = validate_forms(
        [rung("trained", LOGITS), rung("fused", LOGITS + np.float32(4e-6))], SAMPLES, accuracy(LABELS)
    )
    assert verdicts(steps) == ["reference", "passed"]
    first = steps[1].first["y"]
    assert first.max_abs == pytest.approx(4e-6, rel=0.1)
    assert first.relative == pytest.approx(1e-6, rel=0.1)
    assert (first.scale, first.top1.share, steps[1].score.value, steps[1].limit) == (4.0, 1.0, 0.75, 1e-5)
    assert list(outputs) == ["trained", "fused"]


def test_small_steps_that_add_up_fail_against_the_first():
    steps, _ = validate_forms([rung(str(index), LOGITS + np.float32(3e-5 * index)) for index in range(4)], SAMPLES)
    assert verdicts(steps) == ["reference", "passed", "failed", "failed"]
    assert steps[3].previous["y"].relative < 1e-5 < steps[3].first["y"].relative
    assert "differs by 2.3e-05 of its scale, more than 1e-05" in steps[3].reason


@pytest.mark.parametrize(("precision", "verdict"), [("fp16", "passed"), ("fp32", "failed"), ("fp64", "failed")])
def test_the_limit_is_that_of_the_precision(precision, verdict):
    steps, _ = validate_forms([rung("a", LOGITS), rung("b", LOGITS * np.float32(1.005), precision)], SAMPLES)
    assert verdicts(steps) == ["reference", verdict]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_overflow_fails_and_is_no_reference_for_what_follows(value):
    broken = LOGITS.copy()
    broken[1, 0] = value
    steps, outputs = validate_forms([rung("a", LOGITS), rung("b", broken), rung("c", LOGITS)], SAMPLES)
    assert verdicts(steps) == ["reference", "failed", "passed"]
    what = "NaN" if np.isnan(value) else "infinite"
    assert steps[1].reason == f"1 of 8 values of 'y' are {what} where the reference is not"
    assert "b" not in outputs


def test_what_cannot_be_run_is_not_run_and_what_is_refused_fails():
    def cannot(_):
        raise CannotRun("no kernel")

    def refused(_):
        raise DeployError("refused")

    rungs = [
        rung("a", LOGITS),
        RunnableForm("b", "fp32", "no GPU"),
        RunnableForm("c", "fp32", cannot),
        RunnableForm("d", "fp32", refused),
        rung("e", LOGITS),
    ]
    steps, _ = validate_forms(rungs, SAMPLES)
    assert [(step.verdict, step.reason) for step in steps[1:]] == [
        ("not run", "no GPU"),
        ("not run", "no kernel"),
        ("failed", "refused"),
        ("passed", ""),
    ]


def test_without_a_reference_nothing_is_compared():
    with pytest.raises(DeployError, match="first form of the network, a: all 8 values of 'y' are NaN$"):
        validate_forms([rung("a", LOGITS * np.nan), rung("b", LOGITS)], SAMPLES)


def test_where_the_first_form_cannot_be_run_the_next_is_the_reference():
    steps, outputs = validate_forms([RunnableForm("original", "fp32", "no kernel"), rung("onnx", LOGITS)], SAMPLES)
    assert [(step.name, step.verdict, step.reason) for step in steps] == [
        ("original", "not run", "no kernel"),
        ("onnx", "reference", ""),
    ]
    assert list(outputs) == ["onnx"]


def test_the_agreement_is_the_worst_sample():
    other = LOGITS.copy()
    other[3] = [1.0, 3.0]
    found = agreement(other, LOGITS)
    assert (found.max_abs, found.relative, found.top1.share) == (2.0, 0.5, 0.75)
    assert found.cosine == pytest.approx(0.6)


def test_outputs_of_zeros_agree_with_themselves_only():
    zeros = np.zeros((2, 3))
    assert agreement(zeros, zeros).cosine == 1.0
    assert agreement(zeros + 1, zeros).relative == 1.0
    assert agreement(zeros + 1, zeros).cosine == 0.0


def test_feature_maps_have_no_top_class():
    maps = {"y": np.ones((2, 1, 3, 4, 4))}
    found = compare_outputs(maps, maps, 1e-5, samples_for(maps["y"]))[0]["y"]
    assert (found.top1, found.kl) == (None, None)


def test_the_interval_of_a_share_is_that_of_wilson():
    """Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I: 81 of 263, and 0 of 20 turned round."""
    hits = np.zeros((263, 2))
    hits[:81, 0], hits[81:, 1] = 1, 1
    found = accuracy(np.zeros(263, int)).of({"y": hits[:, None]}, samples_for(hits))
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    found = accuracy(np.arange(20)).of({"y": np.eye(20)[:, None]}, samples_for(np.eye(20)))
    assert (found.value, round(1 - found.low, 4), found.high) == (1.0, 0.1611, 1.0)
    assert ACCURACY.figure(found) == "100.00% (83.89% to 100.00%)"


def test_the_divergence_of_logits_is_that_of_their_distributions():
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)) / 2
    assert agreement(np.log(q) + 7, np.log(p)).kl == pytest.approx(expected)
    assert agreement(np.log(p) * 1e4, np.log(p) * 1e4).kl == 0.0


def test_every_output_is_compared_and_the_worst_is_named():
    maps = {"p3": np.ones((4, 4, 8, 8)), "p4": np.ones((4, 8, 4, 4))}
    off = maps | {"p4": maps["p4"] + 3e-5}
    steps, outputs = validate_forms(
        [RunnableForm("a", "fp32", lambda _: maps), RunnableForm("b", "fp32", lambda _: off)], SAMPLES
    )
    assert steps[1].reason == "output p4 differs by 3.0e-05 of its scale, more than 1e-05"
    assert (steps[1].first["p3"].relative, steps[1].worst) == (0.0, steps[1].first["p4"])
    assert list(outputs["b"]) == ["p3", "p4"]
    broken = maps | {"p3": maps["p3"] * np.nan}
    steps, _ = validate_forms(
        [RunnableForm("a", "fp32", lambda _: maps), RunnableForm("b", "fp32", lambda _: broken)], SAMPLES
    )
    assert steps[1].reason == "all 1024 values of 'p3' are NaN"


def test_each_output_has_the_scale_of_its_own():
    small = {"large": np.full((2, 4), 1e4), "small": np.full((2, 4), 1e-4)}
    off = small | {"small": small["small"] * 1.01}
    assert not compare_outputs(off, small, 1e-5, samples_for(small["large"]))[1]
    assert compare_outputs(off, small, 1e-1, samples_for(small["large"]))[1]


def one_call(value, batch=1):
    return Samples({"x": np.zeros((1, batch, 1))}, batch, batch), {"y": np.asarray(value)[None]}


@pytest.mark.parametrize("shape", [(), (3,), (5, 2, 4), (1,)])
def test_outputs_of_any_shape_are_compared_whole(shape):
    whole = np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape)
    samples, reference = one_call(whole, batch=2)
    off = whole.copy()
    off[(-1,) * len(shape)] *= 1.5
    assert compare_outputs({"y": whole[None]}, reference, 1e-5, samples)[1]
    found, near = compare_outputs({"y": off[None]}, reference, 1e-5, samples)
    assert (near, found["y"].relative, found["y"].top1) == (False, 0.5, None)


def test_samples_that_fill_up_a_call_are_not_counted():
    samples = Samples({"x": np.zeros((2, 3, 1))}, batch=3, count=4)
    logits = np.tile([1.0, 0.0], (2, 3, 1))
    other = logits.copy()
    other[1, 1:] = [0.0, 1.0]  # what fills up
    found = compare_outputs({"y": other}, {"y": logits}, 1e-5, samples)[0]["y"]
    assert (found.top1.share, accuracy(np.zeros(4, int)).of({"y": other}, samples).value) == (1.0, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_both_is_said_and_the_rest_is_judged(value):
    holed, off = LOGITS.copy(), LOGITS * np.float32(1.001)
    holed[2, 0] = off[2, 0] = value
    steps, _ = validate_forms([rung("a", holed), rung("b", holed), rung("c", off)], SAMPLES)
    assert verdicts(steps) == ["reference", "passed", "failed"]
    assert (steps[1].first["y"].not_finite, steps[1].first["y"].max_abs) == (1, 0.0)
    assert steps[1].note == "1 values of y are NaN or infinite, as in the reference"
    assert steps[1].first["y"].top1.share == 1.0
    assert (
        steps[1].first["y"].top1.share
        == accuracy(np.arange(3)).of({"y": np.eye(3)[:, None]}, samples_for(np.eye(3))).value
    ), "of three samples"
    again, _ = validate_forms([rung("a", holed), rung("b", LOGITS)], SAMPLES)
    kind = "NaN" if np.isnan(value) else "infinite"
    assert again[1].reason == f"1 of 8 values of 'y' are not {kind} where the reference is"


def test_a_half_precision_output_may_be_rounded_to_its_neighbour_and_no_further():
    exact = np.array([[1.0, 0.25]], np.float32)
    samples, reference = one_call(exact.astype(np.float16))
    for neighbours, near in ((1, True), (2, False)):
        off = (exact + np.float32(neighbours * 2**-10)).astype(np.float16)
        found, judged = compare_outputs({"y": off[None]}, reference, 1e-5, samples)
        assert judged is near is found["y"].within(1e-5)
    assert not compare_outputs({"y": off[None].astype(np.float32)}, {"y": exact[None]}, 1e-3, samples)[1]


@pytest.mark.parametrize("dtype", [np.int64, np.bool_])
def test_of_whole_numbers_the_share_that_differs_is_judged(dtype):
    many = np.ones((1, 1000), dtype)
    few = many.copy()
    few[0, :5] = 0
    samples, reference = one_call(many)
    found, near = compare_outputs({"y": few[None]}, reference, 1e-2, samples)
    assert (near, found["y"].relative, found["y"].max_abs) == (True, 0.005, 1.0)
    assert not compare_outputs({"y": few[None]}, reference, 1e-5, samples)[1]
    steps, _ = validate_forms(
        [RunnableForm("a", "fp32", lambda _: reference), RunnableForm("b", "fp32", lambda _: {"y": few[None]})], samples
    )
    assert steps[1].reason == "0.50% of the values of the output differ, more than 1e-05"


def test_other_outputs_cannot_be_compared():
    steps, _ = validate_forms([rung("a", LOGITS), RunnableForm("b", "fp32", lambda _: {"z": LOGITS[:, None]})], SAMPLES)
    assert (steps[1].verdict, steps[1].reason) == ("failed", "outputs z cannot be compared with outputs y")


def test_comparing_says_nothing_and_loads_neither_torch_nor_tensorrt():
    code = (
        "import sys, numpy as np\nfrom deploy.validate import compare_outputs\nfrom deploy.samples import Samples\n"
        "compare_outputs({'y': np.ones((2, 3))}, {'y': np.zeros((2, 3))}, 1e-5, Samples({'x': np.ones((2, 1))}, batch=1, count=2))\n"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_polygraphy_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingExtra, match=re.escape(f"this needs the package 'polygraphy': {install_command()}")):
        agreement(LOGITS, LOGITS)


def test_other_shapes_cannot_be_compared():
    with pytest.raises(
        DeployError, match=r"output 'y' of shape \[1, 2\] cannot be compared with one of shape \[1, 1\]"
    ):
        agreement(LOGITS, LOGITS[:, :1])


@pytest.mark.parametrize(
    ("interval", "budget_us", "verdict"),
    [
        ((80, 90), 100.0, "met"),
        ((90, 100), 100.0, "met"),
        ((101, 110), 100.0, "missed"),
        ((95, 105), 100.0, "unsure"),
        ((1, 2), None, "no budget"),
    ],
)
def test_a_budget_is_judged_by_the_whole_interval(interval, budget_us, verdict):
    assert judge_latency(*map(float, interval), budget_us) == verdict


def measurement(median_us, low_us, high_us):
    return Measurement(samples_us=(median_us,), median_us=median_us, low_us=low_us, high_us=high_us, status="ok")


@pytest.mark.parametrize(
    ("one", "word"),
    [((60, 59, 61), "FASTER"), ((130, 120, 140), "SLOWER"), ((100, 99.5, 100.5), "SAME"), ((100, 90, 110), "UNSURE")],
)
def test_two_latencies_are_compared_by_their_intervals(one, word):
    found = compare_latency(measurement(*map(float, one)), measurement(100.0, 99.5, 100.5))
    assert found.word == word
    assert found.low <= found.ratio <= found.high
