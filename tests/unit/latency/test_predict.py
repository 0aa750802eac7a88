import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency import Predictor
from latency.predict import Term, features, fit, kendall_tau


def networks(n, noise=0.0, seed=0, boundaries=7):
    rng = np.random.default_rng(seed)
    total, kelements = rng.uniform(100, 600, n), rng.uniform(10, 60, n)
    features = [(float(a), float(boundaries), float(b)) for a, b in zip(total, kelements, strict=True)]
    truth = 1.1 * total - 1.5 * boundaries - 0.9 * kelements
    return features, (truth * (1 + noise * rng.standard_normal(n))).tolist()


def test_exact_law_is_found():
    features, measured = networks(12)
    predictor = fit(features, measured, overhead_us=2.0)
    assert (predictor.scale, predictor.boundary_us, predictor.boundary_us_per_kelement) == pytest.approx((1.1, 1.5, 0.9), rel=1e-6)
    assert predictor.half_width < 1e-6
    assert predictor.mean_absolute_error < 1e-6
    assert predictor.networks == 12
    assert predictor.apply(*features[0]) == pytest.approx(measured[0])


def test_error_is_of_networks_that_the_fit_has_not_seen():
    seen = fit(*networks(20, noise=0.03), overhead_us=2.0)
    unseen_features, unseen = networks(2000, noise=0.03, seed=1)
    errors = np.array([seen.apply(*f) / y - 1 for f, y in zip(unseen_features, unseen, strict=True)])
    assert seen.mean_absolute_error == pytest.approx(np.abs(errors).mean(), rel=0.4)
    assert np.mean(np.abs(errors) <= seen.half_width) > 0.9


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_interval_holds_on_fresh_networks(seed):
    features, measured = networks(60, noise=0.02, seed=seed)
    predictor = fit(features[:40], measured[:40], overhead_us=2.0)
    inside = [abs(predictor.apply(*f) / y - 1) <= predictor.half_width for f, y in zip(features[40:], measured[40:], strict=True)]
    assert np.mean(inside) >= 0.6
    assert predictor.half_width < 0.15


def test_no_network_means_plain_sums_less_launches_and_a_wide_interval():
    predictor = fit([], [], overhead_us=2.5)
    assert (predictor.scale, predictor.boundary_us, predictor.boundary_us_per_kelement) == (1.0, 2.5, 0.0)
    assert (predictor.half_width, predictor.networks) == (0.25, 0)
    assert math.isnan(predictor.mean_absolute_error)
    assert predictor.apply(100.0, 3.0, 50.0) == pytest.approx(92.5)


def test_few_networks_are_judged_by_but_not_fitted():
    predictor = fit(*networks(5), overhead_us=2.5)
    assert (predictor.scale, predictor.boundary_us, predictor.networks) == (1.0, 2.5, 5)
    assert predictor.half_width >= 0.25
    assert predictor.mean_absolute_error > 0
    worse = fit([(100.0, 1.0, 1.0)], [300.0], overhead_us=0.0)
    assert worse.half_width == pytest.approx(2 / 3)


def test_the_order_of_networks_is_judged_too():
    assert fit(*networks(20), overhead_us=2.0).kendall_tau == 1.0
    noisy = fit(*networks(40, noise=0.3), overhead_us=2.0)
    assert 0.2 < noisy.kendall_tau < 0.9
    assert math.isnan(fit([], [], overhead_us=2.5).kendall_tau)
    assert math.isnan(fit([(100.0, 1.0, 1.0)], [300.0], overhead_us=0.0).kendall_tau)


def test_kendall_tau_is_the_share_of_pairs_in_order_less_those_out_of_it():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).standard_normal((2, 30))
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall_tau(a, -a) == -1.0


def test_columns_that_cannot_be_told_apart_do_no_harm():
    features = [(100.0 + i, 3.0, (100.0 + i) / 10) for i in range(10)]
    measured = [f[0] * 0.9 for f in features]
    predictor = fit(features, measured, overhead_us=1.0)
    assert predictor.mean_absolute_error < 1e-6
    assert np.isfinite([predictor.scale, predictor.boundary_us, predictor.boundary_us_per_kelement]).all()
    zero = fit([(f[0], 0.0, 0.0) for f in features], measured, overhead_us=1.0)
    assert (zero.scale, zero.boundary_us) == pytest.approx((0.9, 0.0))


def test_apply_is_plain_arithmetic_on_tensors_too():
    torch = pytest.importorskip("torch")
    predictor = Predictor(
        scale=1.1, boundary_us=1.5, boundary_us_per_kelement=0.9, mean_absolute_error=0.01, bias=0.0, half_width=0.03, networks=20
    )
    total = torch.tensor(100.0, requires_grad=True)
    us = predictor.apply(total, 7.0, torch.tensor(10.0))
    us.backward()
    assert us.item() == pytest.approx(110 - 10.5 - 9)
    assert total.grad.item() == pytest.approx(1.1)


def test_features_of_certain_parts_leave_the_first_boundary_out():
    assert features([Term(2.0, 1.0, 8.0), Term(3.0, 1.0, 4.0), Term(5.0, 1.0, 2.0)]) == (10.0, 2.0, 6.0)
    assert features([Term(0.0, 0.0, 0.0), Term(3.0, 1.0, 4.0), Term(0.0, 0.0, 0.0), Term(5.0, 1.0, 2.0)]) == (8.0, 1.0, 2.0)
    assert features([]) == (0.0, 0.0, 0.0)


def test_features_of_uncertain_parts_are_the_mean_over_what_runs():
    parts, chances = [(2.0, 8.0), (3.0, 4.0), (5.0, 2.0)], (0.25, 0.5, 0.75)
    mean = np.zeros(3)
    for there in itertools.product((0, 1), repeat=3):
        chance = np.prod([p if here else 1 - p for p, here in zip(chances, there, strict=True)])
        mean += chance * np.array(features([Term(us, 1.0, k) for (us, k), here in zip(parts, there, strict=True) if here]))
    assert features([Term(p * us, p, p * k) for p, (us, k) in zip(chances, parts, strict=True)]) == pytest.approx(tuple(mean), rel=1e-12)
