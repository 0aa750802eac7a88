import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency import BlockSpec
from latency.predict import Sums, fit, kendall_tau


def networks(n, noise=0.0, seed=0, convolutions=7):
    """Of convolutions and sums, which save 1.5 and 4 us each, and 0.9 us for 1000 elements; a network takes 3 us beside its blocks."""
    rng = np.random.default_rng(seed)
    total, kelements, adds = rng.uniform(100, 600, n), rng.uniform(10, 60, n), rng.integers(0, 9, n)
    found = [
        Sums(float(a), {"conv": convolutions, "add": int(c)}, float(b))
        for a, b, c in zip(total, kelements, adds, strict=True)
    ]
    truth = 3 + 1.1 * total - 1.5 * convolutions - 4 * adds - 0.9 * kelements
    return found, (truth * (1 + noise * rng.standard_normal(n))).tolist()


def test_exact_law_is_found():
    (found, measured), (more, others) = networks(12), networks(12, seed=1, convolutions=3)
    predictor = fit(found + more, measured + others, overhead_us=2.0)
    coefficients = predictor.scale, predictor.saved_us_per_kelement, predictor.network_us
    assert coefficients == pytest.approx((1.1, 0.9, 3), rel=1e-6)
    assert predictor.saved_us == pytest.approx({"add": 4, "conv": 1.5}, rel=1e-6)
    assert predictor.half_width < 1e-6
    assert predictor.mean_absolute_error < 1e-6
    assert (predictor.networks, predictor.within_5, predictor.within_10) == (24, 1.0, 1.0)
    assert predictor.network(found[0]) == pytest.approx(measured[0])
    each = predictor.added_us("conv", found[0].us, found[0].kelements) + 6 * predictor.added_us("conv", 0.0, 0.0)
    assert predictor.network_us + each + found[0].counts["add"] * predictor.added_us("add", 0.0, 0.0) == pytest.approx(
        measured[0]
    )


def test_kinds_that_no_network_has_save_what_others_do_in_the_mean():
    predictor = fit(*networks(40), overhead_us=2.0)
    assert predictor.added_us("tail", 10.0, 0.0) == pytest.approx(11 - sum(predictor.saved_us.values()) / 2)


def test_error_is_of_networks_that_the_fit_has_not_seen():
    seen = fit(*networks(50, noise=0.03), overhead_us=2.0)
    others, unseen = networks(2000, noise=0.03, seed=1)
    errors = np.array([seen.network(sums) / y - 1 for sums, y in zip(others, unseen, strict=True)])
    assert seen.mean_absolute_error == pytest.approx(np.abs(errors).mean(), rel=0.4)
    assert np.mean(np.abs(errors) <= seen.half_width) > 0.9
    assert np.mean(np.abs(errors) <= 0.05) == pytest.approx(seen.within_5, abs=0.1)
    assert seen.within_5 <= seen.within_10


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_interval_holds_on_fresh_networks(seed):
    found, measured = networks(60, noise=0.02, seed=seed)
    predictor = fit(found[:40], measured[:40], overhead_us=2.0)
    inside = [
        abs(predictor.network(sums) / y - 1) <= predictor.half_width
        for sums, y in zip(found[40:], measured[40:], strict=True)
    ]
    assert np.mean(inside) >= 0.6
    assert predictor.half_width < 0.15


def test_no_network_means_plain_sums_less_launches_and_a_wide_interval():
    predictor = fit([], [], overhead_us=2.5)
    assert (predictor.scale, predictor.saved_us, predictor.saved_us_else, predictor.saved_us_per_kelement) == (
        1.0,
        {},
        2.5,
        0.0,
    )
    assert (predictor.half_width, predictor.networks) == (0.25, 0)
    assert math.isnan(predictor.mean_absolute_error)
    assert math.isnan(predictor.within_5)
    assert predictor.network(Sums(100.0, {"conv": 3, "head": 1}, 50.0)) == pytest.approx(92.5)


def test_few_networks_are_judged_by_but_not_fitted():
    predictor = fit(*networks(5), overhead_us=2.5)
    assert (predictor.scale, predictor.saved_us_else, predictor.network_us, predictor.networks) == (1.0, 2.5, 2.5, 5)
    assert predictor.half_width >= 0.25
    assert predictor.mean_absolute_error > 0
    worse = fit([Sums(100.0, {"conv": 2}, 1.0)], [300.0], overhead_us=0.0)
    assert worse.half_width == pytest.approx(2 / 3)


def test_the_order_of_networks_is_judged_too():
    assert fit(*networks(20), overhead_us=2.0).kendall_tau == 1.0
    noisy = fit(*networks(40, noise=0.3), overhead_us=2.0)
    assert 0.2 < noisy.kendall_tau < 0.9
    assert math.isnan(fit([], [], overhead_us=2.5).kendall_tau)
    assert math.isnan(fit([Sums(100.0, {"conv": 2}, 1.0)], [300.0], overhead_us=0.0).kendall_tau)


def test_kendall_tau_is_the_share_of_pairs_in_order_less_those_out_of_it():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).standard_normal((2, 30))
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall_tau(a, -a) == -1.0


@pytest.mark.parametrize(("n", "kinds"), [(6, {}), (11, {}), (12, {"add", "conv"})])
def test_kinds_are_told_apart_where_networks_are_many(n, kinds):
    assert set(fit(*networks(n, noise=0.01), overhead_us=1.0).saved_us) == set(kinds)


def test_columns_that_cannot_be_told_apart_do_no_harm():
    found = [Sums(100.0 + i, {"conv": 3, "head": 1}, (100.0 + i) / 10) for i in range(20)]
    measured = [sums.us * 0.9 for sums in found]
    for n in (10, 20):
        predictor = fit(found[:n], measured[:n], overhead_us=1.0)
        assert predictor.mean_absolute_error < 1e-6
        assert np.isfinite(
            [predictor.scale, predictor.saved_us_else, predictor.saved_us_per_kelement, predictor.network_us]
        ).all()
    alone = fit([Sums(sums.us, {"conv": 1}, 0.0) for sums in found[:10]], measured[:10], overhead_us=1.0)
    assert (alone.scale, alone.saved_us_else) == pytest.approx((0.9, 0.0))


def test_what_a_block_adds_is_plain_arithmetic_on_tensors_too():
    torch = pytest.importorskip("torch")
    predictor = fit(*networks(40), overhead_us=2.0)
    us = torch.tensor(100.0, requires_grad=True)
    added = predictor.added_us("add", us, torch.tensor(10.0))
    added.backward()
    assert added.item() == pytest.approx(predictor.added_us("add", 100.0, 10.0))
    assert us.grad.item() == pytest.approx(1.1)


def test_sums_of_blocks_are_by_their_kinds():
    blocks = [
        BlockSpec.of(op, attrs={"h": 10, "w": 10}, widths={"c_in": width})
        for op, width in (("conv", 10), ("add", 20), ("conv", 30))
    ]
    assert Sums.of(blocks, [1.0, 2.0, 3.0]) == Sums(6.0, {"conv": 2, "add": 1}, 6.0)
