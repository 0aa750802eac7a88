import itertools
import random
import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency import Protocol
from latency.measure import Launched, measure, median_interval, percentile, samples_to_state, stationary_from, summarize
from latency.monitor import Monitor, Reading
from latency.protocol import DEFAULT, FAST, TRTEXEC_11

PROTOCOL = Protocol(name="test", warmup_ms=1.0, min_samples=20, max_samples=500, min_time_ms=2.0, max_time_ms=50.0)


class Simulated:
    """Inferences that advance a clock of their own; `latency_us` tells how long the n-th one takes."""

    def __init__(self, latency_us):
        self.latency_us, self.now_ns, self.calls = latency_us, 0.0, []

    def clock(self):
        return round(self.now_ns)

    def run(self, count):
        start = sum(self.calls)
        self.calls.append(count)
        samples = [self.latency_us(start + i) for i in range(count)]
        self.now_ns += 1e3 * sum(samples)
        return samples


def quiet(noise, us=30.0, seed=0):
    rng = random.Random(seed)
    return lambda n: us * (1 + rng.gauss(0, noise))


def go(latency_us, protocol=PROTOCOL):
    timed = Simulated(latency_us)
    return timed, measure(timed, protocol, timed.clock)


def test_a_quiet_device_settles_soon():
    timed, found = go(quiet(0.003))
    assert found.status == "ok"
    assert found.median_us == pytest.approx(30, rel=0.003)
    assert found.low_us <= found.median_us <= found.high_us
    assert PROTOCOL.min_samples <= len(found.samples_us) < PROTOCOL.max_samples
    assert 3.0 <= timed.now_ns / 1e6 < 6.0  # 1 ms of warm-up, 2 ms of sampling, and the batch that is under way


def test_warm_up_is_not_sampled():
    timed, found = go(lambda n: 500.0 if n < 2 else 30.0)
    assert max(found.samples_us) == 30.0
    assert timed.calls[:2] == [1, 1]


def test_spikes_do_not_move_the_median():
    rng = random.Random(1)
    _, found = go(lambda n: 30.0 * (1 + rng.gauss(0, 0.003)) + (900.0 if rng.random() < 0.05 else 0.0))
    assert found.status == "ok"
    assert found.median_us == pytest.approx(30, rel=0.005)


def test_noise_is_sampled_up_to_the_ceiling_and_called_unstable():
    _, found = go(quiet(0.5))
    assert found.status == "unstable"
    assert len(found.samples_us) == PROTOCOL.max_samples
    assert found.high_us - found.low_us > 2 * PROTOCOL.half_width * found.median_us


def test_more_noise_takes_more_samples():
    counts = [len(go(quiet(noise))[1].samples_us) for noise in (0.002, 0.04)]
    assert counts[0] < counts[1]


def test_drift_is_unstable():
    _, found = go(lambda n: 30.0 * (1 + n / 1000))
    assert found.status == "unstable"
    assert len(found.samples_us) == PROTOCOL.max_samples


def test_drift_is_unstable_though_the_interval_is_narrow_and_the_interval_then_spans_it():
    first, second = [29.3] * 51 + [30.0] * 49, [30.0] * 49 + [30.7] * 51
    low_us, high_us = median_interval(first + second, 0.95)
    assert (low_us, high_us) == (30.0, 30.0)
    found = summarize(first + second, PROTOCOL)
    assert (found.status, found.low_us, found.median_us, found.high_us) == ("unstable", 29.3, 30.0, 30.7)


def test_a_slow_network_stops_at_the_ceiling_of_time_but_not_below_the_floor_of_samples():
    _, found = go(lambda n: 1e5)
    assert (len(found.samples_us), found.status) == (PROTOCOL.min_samples, "ok")


def test_the_floor_of_time_is_kept():
    timed, found = go(lambda n: 5.0)
    assert timed.now_ns / 1e6 >= PROTOCOL.warmup_ms + PROTOCOL.min_time_ms
    assert len(found.samples_us) * 5e-3 >= PROTOCOL.min_time_ms


def test_samples_are_kept_to_a_nanosecond():
    found = summarize([1.00049, 1.00051, 1.002], PROTOCOL)
    assert found.samples_us == (1.0, 1.001, 1.002)
    assert found.median_us == 1.001
    assert summarize([1.0, 1.001], PROTOCOL).median_us == statistics.median([1.0, 1.001]).__round__(3)


def test_one_sample_is_its_own_interval():
    found = summarize([7.0], PROTOCOL)
    assert (found.low_us, found.median_us, found.high_us) == (7.0, 7.0, 7.0)
    assert msgspec.to_builtins(found)["samples_us"] == (7.0,)


@pytest.mark.parametrize("n", [3, 5, 7])
def test_interval_equals_every_resample_counted(n):
    """For an odd number the ends are exact: the percentiles of the medians of all n^n resamples."""
    medians = np.sort(np.median(np.array(list(itertools.product(range(n), repeat=n))), axis=1))
    for confidence in (0.5, 0.8, 0.95):
        low, high = median_interval([float(k) for k in range(n)], confidence)
        tail = (1 - confidence) / 2
        shares = [np.mean(medians <= k) for k in range(n)]
        assert low == next(k for k in range(n) if shares[k] >= tail)
        assert high == n - 1 - low


@pytest.mark.parametrize("n", [4, 6])
def test_interval_of_an_even_number_is_never_narrower_than_the_exact_one(n):
    medians = np.sort(np.median(np.array(list(itertools.product(range(n), repeat=n))), axis=1))
    for confidence in (0.5, 0.8, 0.95):
        low, high = median_interval([float(k) for k in range(n)], confidence)
        tail = (1 - confidence) / 2
        assert low <= np.quantile(medians, tail, method="inverted_cdf")
        assert high >= np.quantile(medians, 1 - tail, method="inverted_cdf")


def test_interval_agrees_with_sampled_resamples():
    rng = np.random.default_rng(0)
    samples = np.sort(rng.lognormal(size=101))
    low, high = median_interval(samples.tolist(), 0.95)
    medians = np.median(rng.choice(samples, size=(20_000, 101)), axis=1)
    ranks = np.searchsorted(samples, [*np.quantile(medians, [0.025, 0.975]), low, high])
    assert np.abs(ranks[:2] - ranks[2:]).max() <= 1


def test_interval_covers_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [
        low <= 0 <= high for low, high in (median_interval(rng.normal(size=50).tolist(), 0.95) for _ in range(1000))
    ]
    assert 0.93 <= np.mean(covered) <= 0.985


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_of_the_samples_and_holds_the_median(samples, confidence):
    low, high = median_interval(samples, confidence)
    assert low in samples
    assert high in samples
    assert low <= statistics.median(samples) <= high
    assert median_interval(samples, 0.999)[0] <= low


def test_ranks_of_large_samples_stay_sound():
    low, high = median_interval([float(k) for k in range(10_001)], 0.95)
    assert high - 5000 == 5000 - low
    assert low == pytest.approx(5000 - 1.96 * 0.5 * 10_001**0.5, abs=2)  # the normal limit


class Watch:
    """A monitor that finds the device disturbed at given readings."""

    def __init__(self, disturbed=()):
        self.disturbed, self.reads = set(disturbed), 0

    def read(self):
        self.reads += 1
        hot = self.reads - 1 in self.disturbed
        return Reading(clocks={"sm_mhz": 1000.0 if hot else 1500.0}, disturbed=("thermal slowdown",) if hot else ())


def watched(latency_us, watch, protocol=PROTOCOL):
    timed = Simulated(latency_us)
    return timed, measure(timed, protocol, timed.clock, watch)


def test_a_quiet_device_is_read_between_windows_only():
    timed, found = watched(quiet(0.003), watch := Watch())
    assert isinstance(watch, Monitor)
    assert watch.reads == 1 + sum(call > 1 for call in timed.calls)
    assert (found.clocks, found.error) == ({"sm_mhz": 1500.0}, "")
    assert found.samples_us == go(quiet(0.003))[1].samples_us


def test_a_window_with_a_disturbed_end_is_thrown_away_and_counted():
    warm_up = 34  # inferences in a millisecond
    timed, found = watched(lambda n: 60.0 if warm_up <= n < warm_up + 40 else 30.0, Watch({1}))
    assert max(found.samples_us) == 30.0
    assert found.clocks == {"sm_mhz": 1500.0, "discarded_windows": 2.0}
    assert found.status == "ok"
    assert timed.calls.count(20) >= 3


def test_a_device_that_is_always_disturbed_is_unstable_and_says_so():
    timed, found = watched(lambda n: 60.0, Watch(range(10**6)))
    assert (found.status, found.reason) == ("unstable", "the device was disturbed throughout: thermal slowdown")
    assert found.median_us == 60.0
    assert found.clocks["discarded_windows"] > 100
    assert timed.now_ns / 1e6 < 12 * PROTOCOL.max_time_ms


def test_long_samplings_keep_a_spread_of_samples():
    protocol = msgspec.structs.replace(PROTOCOL, min_time_ms=60.0, max_time_ms=60.0, max_samples=64)
    timed, found = go(lambda n: 10.0 + n / 1e4, protocol)
    taken = sum(timed.calls)
    assert 32 <= len(found.samples_us) <= 64
    assert timed.now_ns / 1e6 >= 61.0
    assert found.samples_us[0] < 10.05
    assert found.samples_us[-1] > 10.0 + 0.9 * taken / 1e4
    assert found.median_us == pytest.approx(10 + taken / 2e4, rel=0.02)


def test_windows_stay_short_so_that_a_disturbance_is_seen():
    timed, _ = go(
        lambda n: 1000.0, msgspec.structs.replace(PROTOCOL, min_time_ms=3000.0, max_time_ms=3000.0, max_samples=10**6)
    )
    assert max(timed.calls) == 50


def test_the_protocol_says_how_to_launch_and_what_cannot_be_had_is_said():
    class Gpu(Simulated):
        def launch(self, *, cuda_graph, spin_wait):
            self.asked = (cuda_graph, spin_wait)
            return "no graph"

    timed = Gpu(quiet(0.001))
    assert isinstance(timed, Launched)
    found = measure(timed, msgspec.structs.replace(PROTOCOL, spin_wait=False), timed.clock)
    assert (timed.asked, found.error, found.status) == ((True, False), "no graph", "ok")


def test_what_is_as_asked_leaves_no_trace_on_disk():
    found = go(quiet(0.003))[1]
    assert set(msgspec.to_builtins(found)) == {"samples_us", "median_us", "low_us", "high_us", "p90_us", "status"}


# transients, drift and modes, under the protocols as they are


class Device:
    """Inferences on a clock of their own; `slow(i)` tells how many times as long the i-th ones take as 100 us, before a noise of 0.3 %."""

    def __init__(self, slow, seed=0, noise=0.003):
        self.slow, self.noise, self.draw = slow, noise, np.random.default_rng(seed)
        self.runs, self.now_us = 0, 0.0

    def run(self, count):
        runs = np.arange(self.runs, self.runs + count)
        samples = 100.0 * self.slow(runs, self.draw) * np.exp(self.noise * self.draw.standard_normal(count))
        self.runs, self.now_us = self.runs + count, self.now_us + float(samples.sum())
        return samples.tolist()


def judged(slow, protocol, **fields):
    device = Device(slow, **fields)
    return measure(device, protocol, lambda: round(device.now_us * 1000))


BOTH = pytest.mark.parametrize("protocol", [FAST, DEFAULT], ids=lambda protocol: protocol.name)


@BOTH
@pytest.mark.parametrize("runs", [50, 200, 500, 2000])
@pytest.mark.parametrize("factor", [1.05, 1.8, 18.0])
def test_a_transient_is_not_taken_for_the_latency(protocol, runs, factor):
    if runs * factor > 4000:
        pytest.skip("flat for longer than the watch: nothing tells it from the latency")
    found = judged(lambda i, _: np.where(i < runs, factor, 1.0), protocol)
    assert (found.status, found.reason) == ("ok", "")
    assert found.median_us == pytest.approx(100, rel=0.003)
    assert max(found.samples_us) < 102


@BOTH
@pytest.mark.parametrize(
    "slow",
    [
        lambda i, _: 1 + 0.8 * np.clip(1 - i / 500, 0, 1),
        lambda i, _: 1 + 0.8 * np.clip(1 - i / 2000, 0, 1),
        lambda i, _: 1 - 0.5 * np.exp(-i / 300),
        lambda i, _: 1 + 0.8 * np.exp(-i / 500),
    ],
    ids=["ramp of 500", "ramp of 2000", "slower and slower", "faster and faster"],
)
def test_what_settles_is_measured_after_it_has_settled(protocol, slow):
    found = judged(slow, protocol)
    assert found.status == "ok"
    assert found.median_us == pytest.approx(100, rel=0.01)


@BOTH
@pytest.mark.parametrize(
    "slow", [lambda i, _: 1 + i / 10_000, lambda i, _: 2 - np.clip(i / 25_000, 0, 0.9)], ids=["slower", "faster"]
)
def test_what_does_not_settle_is_unstable_says_so_and_is_bounded(protocol, slow):
    device = Device(slow)
    found = measure(device, protocol, lambda: round(device.now_us * 1000))
    assert found.status == "unstable"
    assert found.reason.startswith("the latency moved while sampling, from ")
    assert found.low_us < found.median_us < found.high_us
    assert device.now_us / 1000 < 1.6 * protocol.max_time_ms


@BOTH
@pytest.mark.parametrize("factor", [1.05, 1.4, 5.0])
def test_outliers_are_not_a_mode(protocol, factor):
    found = judged(lambda i, draw: np.where(draw.random(len(i)) < 0.05, factor, 1.0), protocol)
    assert found.status == "ok"
    assert found.median_us == pytest.approx(100, rel=0.005)


@BOTH
@pytest.mark.parametrize("share", [0.2, 0.3, 0.7])
@pytest.mark.parametrize(("factor", "noise"), [(1.05, 0.003), (1.4, 0.003), (1.4, 0.03), (5.0, 0.03)])
def test_two_modes_are_unstable_wherever_the_median_is(protocol, share, factor, noise):
    found = judged(lambda i, draw: np.where(draw.random(len(i)) < share, factor, 1.0), protocol, noise=noise)
    assert found.status == "unstable"
    assert found.reason.startswith("the samples have two modes: ")
    assert (found.low_us, found.high_us) == pytest.approx((100, 100 * factor), rel=0.01)


def test_two_modes_are_found_beneath_outliers():
    found = judged(lambda i, draw: draw.choice([1.0, 1.4, 9.0], len(i), p=[0.67, 0.3, 0.03]), DEFAULT, noise=0.03)
    assert found.reason.startswith("the samples have two modes: ")


UNIMODAL = {
    "normal": lambda draw, n: 1 + 0.05 * draw.standard_normal(n),
    "uniform": lambda draw, n: 1 + draw.random(n),
    "exponential": lambda draw, n: 1 + 0.2 * draw.exponential(size=n),
    "lognormal": lambda draw, n: draw.lognormal(0, 0.5, n),
    "half Cauchy": lambda draw, n: 1 + np.abs(0.01 * draw.standard_cauchy(n)),
    "outliers": lambda draw, n: np.where(
        draw.random(n) < 0.05, 1.5 + draw.exponential(size=n), 1 + 0.01 * draw.standard_normal(n)
    ),
    "a spike with a flat tail": lambda draw, n: np.where(
        draw.random(n) < 0.3, 1 + draw.random(n), 1 + 0.001 * draw.standard_normal(n)
    ),
}


@pytest.mark.parametrize("n", [50, 300, 1000])
@pytest.mark.parametrize("name", UNIMODAL)
def test_what_has_one_mode_is_not_said_to_have_two(name, n):
    """No more than 1 % of false alarms; 300 seeds."""
    reasons = [
        summarize((100 * UNIMODAL[name](np.random.default_rng(seed), n)).tolist(), DEFAULT).reason
        for seed in range(300)
    ]
    assert sum("two modes" in reason for reason in reasons) <= 3


@BOTH
@pytest.mark.parametrize("factor", [1.05, 1.4, 5.0])
@pytest.mark.parametrize("seed", range(20))
def test_two_equal_modes_are_unstable_and_both_are_named(protocol, factor, seed):
    found = judged(lambda i, draw: np.where(draw.random(len(i)) < 0.5, factor, 1.0), protocol, seed=seed)
    assert found.status == "unstable"
    if found.reason.startswith("the samples have two modes: "):
        assert (found.low_us, found.high_us) == pytest.approx((100, 100 * factor), rel=0.01)


@BOTH
@pytest.mark.parametrize("length", [1, 100, 1000])
def test_two_modes_in_turns_are_unstable(protocol, length):
    found = judged(lambda i, _: np.where(i // length % 2, 1.4, 1.0), protocol)
    assert found.status == "unstable"
    assert found.low_us < 101
    assert found.high_us > 139


@BOTH
def test_spikes_that_come_regularly_and_heavy_tails_leave_the_median(protocol):
    for slow in (
        lambda i, _: np.where(i % 10, 1.0, 5.0),
        lambda i, draw: np.exp(0.003 * draw.standard_t(1.5, len(i))),
    ):
        found = judged(slow, protocol)
        assert (found.status, round(found.median_us)) == ("ok", 100)


@BOTH
def test_a_stationary_device_is_ok(protocol):
    """No more than 1 % of false alarms; 500 seeds."""
    quick = msgspec.structs.replace(protocol, settle_runs=1000)
    found = [judged(lambda i, _: 1.0, quick, seed=seed, noise=0.01) for seed in range(500)]
    assert sum(one.status == "ok" for one in found) >= 495
    assert max(abs(one.median_us / 100 - 1) for one in found) < 0.01


def test_a_wide_interval_is_never_ok():
    draw = np.random.default_rng(0)
    for _ in range(300):
        samples = np.exp(draw.uniform(0, 1.5) * draw.standard_normal(int(draw.integers(5, 200))))
        found = summarize(samples.tolist(), DEFAULT)
        if found.status == "ok":
            assert found.high_us / found.low_us < 1 + 2.1 * DEFAULT.half_width
        else:
            assert found.reason
    assert summarize([2.6] * 20 + [6.9] * 20, DEFAULT).status == "unstable"


@pytest.mark.parametrize("slow_us", [5_000.0, 60_000.0, 400_000.0])
def test_a_slow_network_costs_few_runs(slow_us):
    device = Device(lambda i, _: slow_us / 100)
    found = measure(device, FAST, lambda: round(device.now_us * 1000))
    assert found.status == "ok"
    assert device.runs <= max(1.3 * FAST.min_samples, 1.5 * FAST.settle_ms * 1000 / slow_us)


def test_a_fixed_warm_up_stays_fixed():
    found = judged(lambda i, _: np.where(i < 2100, 1.8, 1.0), TRTEXEC_11)  # 378 ms, of which 200 are warm-up
    assert found.samples_us[0] > 170
    assert found.median_us == pytest.approx(100, rel=0.003)


def test_where_the_stationary_end_begins():
    noisy = 100 + np.random.default_rng(0).standard_normal(4000)
    assert stationary_from(noisy.tolist(), 0.01) == (500, True)
    for transient, start in ((100, 500), (900, 1375), (1500, 2250)):
        assert stationary_from((np.where(np.arange(4000) < transient, 1.5, 1.0) * noisy).tolist(), 0.01) == (
            start,
            True,
        )
    assert stationary_from((np.where(np.arange(4000) < 3000, 1.5, 1.0) * noisy).tolist(), 0.01) == (2000, False)
    assert stationary_from([5.0], 0.01) == (0, True)


# percentiles


@pytest.mark.parametrize(("share", "needed"), [(0.90, 64), (0.99, 662), (0.5, 11)])
def test_a_percentile_needs_as_many_samples_as_loadgen_says(share, needed):
    """64 and 662 are the numbers of MLPerf's rules for the 90th and the 99th percentile."""
    assert samples_to_state(share) == needed
    assert percentile([1.0] * needed, share) == 1.0
    assert percentile([1.0] * (needed - 1), share) is None


@given(st.lists(st.floats(0.1, 1e6), min_size=64, max_size=200))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(samples):
    found = percentile(samples, 0.9)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= 0.9 * len(samples)
    assert sum(sample < found for sample in samples) < 0.9 * len(samples)


def test_percentiles_stand_beside_the_median_where_they_can_be_stated():
    tailed = [100.0] * 850 + [150.0] * 130 + [400.0] * 20
    rng = np.random.default_rng(0)
    samples = rng.permutation(tailed).tolist()
    found = summarize(samples, DEFAULT)
    assert (found.median_us, found.p90_us, found.p99_us) == (100.0, 150.0, 400.0)
    few = summarize(samples[:300], DEFAULT)
    assert (few.p90_us, few.p99_us) == (150.0, None)
    assert summarize(samples[:63], DEFAULT).p90_us is None
