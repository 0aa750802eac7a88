import numpy as np
import pytest

from deploy.errors import DeployError
from deploy.validate import CannotRun, Rung, agreement, climb, compare_latency, judge_latency
from latency import Measurement

SAMPLES = np.zeros((4, 1, 1, 1), np.float32)
LABELS = np.array([0, 1, 0, 1])
LOGITS = np.array([[2.0, 1.0], [0.0, 1.0], [4.0, 0.0], [3.0, 1.0]], np.float32)


def rung(name, output, precision="fp32"):
    return Rung(name, precision, lambda _: output)


def verdicts(steps):
    return [step.verdict for step in steps]


def test_what_agrees_passes_with_its_numbers():
    steps, outputs = climb([rung("trained", LOGITS), rung("fused", LOGITS + np.float32(4e-6))], SAMPLES, LABELS)
    assert verdicts(steps) == ["reference", "passed"]
    assert steps[1].first.max_abs == pytest.approx(4e-6, rel=0.1)
    assert steps[1].first.relative == pytest.approx(1e-6, rel=0.1)
    assert (steps[1].first.top1, steps[1].accuracy, steps[1].limit) == (1.0, 0.75, 1e-5)
    assert list(outputs) == ["trained", "fused"]


def test_small_steps_that_add_up_fail_against_the_first():
    steps, _ = climb([rung(str(index), LOGITS + np.float32(3e-5 * index)) for index in range(4)], SAMPLES)
    assert verdicts(steps) == ["reference", "passed", "failed", "failed"]
    assert steps[3].previous.relative < 1e-5 < steps[3].first.relative
    assert "differs by 2.3e-05 of its scale, more than 1e-05" in steps[3].reason


@pytest.mark.parametrize(("precision", "verdict"), [("fp16", "passed"), ("fp32", "failed"), ("fp64", "failed")])
def test_the_limit_is_that_of_the_precision(precision, verdict):
    steps, _ = climb([rung("a", LOGITS), rung("b", LOGITS * np.float32(1.005), precision)], SAMPLES)
    assert verdicts(steps) == ["reference", verdict]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_overflow_fails_and_is_no_reference_for_what_follows(value):
    broken = LOGITS.copy()
    broken[1, 0] = value
    steps, outputs = climb([rung("a", LOGITS), rung("b", broken), rung("c", LOGITS)], SAMPLES)
    assert verdicts(steps) == ["reference", "failed", "passed"]
    assert steps[1].reason == "1 of 8 output values are infinite or not a number"
    assert "b" not in outputs


def test_what_cannot_be_run_is_not_run_and_what_is_refused_fails():
    def cannot(_):
        raise CannotRun("no kernel")

    def refused(_):
        raise DeployError("refused")

    rungs = [rung("a", LOGITS), Rung("b", "fp32", "no GPU"), Rung("c", "fp32", cannot), Rung("d", "fp32", refused), rung("e", LOGITS)]
    steps, _ = climb(rungs, SAMPLES)
    assert [(step.verdict, step.reason) for step in steps[1:]] == [
        ("not run", "no GPU"),
        ("not run", "no kernel"),
        ("failed", "refused"),
        ("passed", ""),
    ]


def test_without_a_reference_nothing_is_compared():
    with pytest.raises(DeployError, match="first form of the network, a: 8 of 8 output values are infinite"):
        climb([rung("a", LOGITS * np.nan), rung("b", LOGITS)], SAMPLES)


def test_the_agreement_is_the_worst_sample():
    other = LOGITS.copy()
    other[3] = [1.0, 3.0]
    found = agreement(other, LOGITS)
    assert (found.max_abs, found.relative, found.top1) == (2.0, 0.5, 0.75)
    assert found.cosine == pytest.approx(0.6)


def test_outputs_of_zeros_agree_with_themselves_only():
    zeros = np.zeros((2, 3))
    assert agreement(zeros, zeros).cosine == 1.0
    assert agreement(zeros + 1, zeros).relative == 1.0
    assert agreement(zeros + 1, zeros).cosine == 0.0


def test_feature_maps_have_no_top_class():
    assert agreement(np.ones((2, 3, 4, 4)), np.ones((2, 3, 4, 4))).top1 is None


def test_other_shapes_cannot_be_compared():
    with pytest.raises(DeployError, match=r"\[4, 2\] cannot be compared with one of shape \[4, 1\]"):
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
