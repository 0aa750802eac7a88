import itertools
import math

import numpy as np
import pytest

from latency.interpolate import UNSEEN, Interpolation

GRID = list(itertools.product(range(8, 129, 8), range(8, 129, 8)))


def steps_of(step):
    return lambda a, b: 20.0 + 0.4 * math.ceil(a / step) * math.ceil(b / step) * step


def some(function, points, share, seed=0):
    """Corners and a random share of the points measured; the others, with what they cost."""
    ends = {(a, b) for a in (points[0][0], points[-1][0]) for b in (points[0][1], points[-1][1])}
    rest = [point for point in points if point not in ends]
    chosen = np.random.default_rng(seed).permutation(len(rest))[: int(share * len(points))]
    knots = [*ends, *(rest[i] for i in chosen)]
    others = [point for point in points if point not in knots]
    fit = Interpolation(np.array(knots), np.array([function(*point) for point in knots]))
    return fit, np.array(others), np.array([function(*point) for point in others])


@pytest.mark.parametrize("step", [16, 32, 64])
def test_steps_are_found_and_not_smoothed_away(step):
    fit, others, truth = some(steps_of(step), GRID, 0.2)
    us, half = fit.predict(others)
    assert fit.groups == (step, step)
    assert np.abs(us / truth - 1).mean() < 0.01
    assert fit.error < 0.02
    # Smoothing would be wrong by much more: that is what makes the case worth a test.
    plain = np.linalg.lstsq(np.c_[np.ones(len(others)), others, others.prod(axis=1)], truth, rcond=None)[0]
    smooth = np.c_[np.ones(len(others)), others, others.prod(axis=1)] @ plain
    assert np.abs(smooth / truth - 1).mean() > 0.02
    assert (np.abs(us / truth - 1) <= half + 1e-9).mean() > 0.9


def test_where_there_are_no_steps_none_are_found():
    fit, others, truth = some(lambda a, b: 3 + 0.01 * a + 0.02 * b + 0.001 * a * b, GRID, 0.1)
    us, half = fit.predict(others)
    assert fit.groups == (1, 1)
    assert us == pytest.approx(truth, rel=0.01)
    assert np.abs(us / truth - 1).mean() < 1e-3
    assert half.max() < 0.03


def test_an_axis_with_one_value_is_no_axis():
    widths = np.array([[3, w] for w in range(8, 129, 8)])
    us, _ = Interpolation(widths[::2], 5 + 0.1 * widths[::2, 1]).predict(widths[1:-2:2])
    assert us == pytest.approx(5 + 0.1 * widths[1:-2:2, 1], rel=1e-3)


def test_with_too_few_points_the_interval_is_as_wide_as_they_differ():
    fit = Interpolation(np.array([[8], [64]]), np.array([10.0, 15.0]))
    us, half = fit.predict(np.array([[32]]))
    assert math.isnan(fit.error)
    assert 10 < us[0] < 15
    assert half[0] == pytest.approx(0.5)


def test_measured_blocks_are_what_was_measured():
    fit, _, _ = some(steps_of(16), GRID, 0.2)
    knot = np.array([[8, 8], [128, 128]])
    assert fit.predict(knot)[0] == pytest.approx([steps_of(16)(8, 8), steps_of(16)(128, 128)], rel=2e-3)


def aligned(width):
    """Steps of 64; 4 us more where 16 does not divide the width, and 3 us less where 64 does."""
    return 20 + 5 * np.ceil(width / 64) + np.where(width % 16 != 0, 4.0, 0) - np.where(width % 64 == 0, 3.0, 0)


@pytest.mark.parametrize(
    "knots",
    [
        pytest.param(np.arange(8, 257, 16.0), id="every second width: odd multiples of 8"),
        pytest.param(np.arange(16, 257, 16.0), id="every second width: multiples of 16"),
        pytest.param(np.arange(8, 257, 24.0), id="every third width"),
        pytest.param(np.arange(64, 257, 64.0), id="multiples of 64"),
        *(
            pytest.param(np.sort(np.random.RandomState(k).permutation(np.arange(16, 256, 8.0))[:9]), id=f"random {k}")
            for k in range(6)
        ),
    ],
)
def test_intervals_hold_where_some_widths_cost_more_than_wider_ones(knots):
    knots = np.unique([8.0, *knots, 256.0])
    others = np.setdiff1d(np.arange(8, 257, 8.0), knots)
    fit = Interpolation(knots[:, None], aligned(knots))
    us, half = fit.predict(others[:, None])
    errors = np.abs(us / aligned(others) - 1)
    assert (errors <= half).mean() >= 0.8
    if (
        len(np.unique(knots % 16)) > 1 and len(knots) > 9 and len(np.unique(np.diff(knots))) > 2
    ):  # no evenly spaced ones
        assert errors.mean() <= 2 * fit.error + 0.07


def test_widths_unlike_all_that_were_measured_have_a_wide_interval_and_others_do_not():
    knots = np.arange(8.0, 257, 16)
    us, half = Interpolation(knots[:, None], 20 + knots / 10).predict(np.array([[24.0], [64.0], [32.0]]))
    assert half[0] < 0.01
    assert half[1:].min() >= UNSEEN
    assert us == pytest.approx([22.4, 26.4, 23.2], rel=0.05)


def test_the_claimed_error_is_that_of_a_model_that_was_chosen_without_the_block():
    """Noise of 5 % cannot be predicted, however many models are tried."""
    draw = np.random.RandomState(1)
    claimed, true, inside = [], [], []
    for _ in range(8):
        points = np.array(GRID)[draw.permutation(len(GRID))]
        us = (20 + points.prod(axis=1) / 100) * np.exp(0.05 * draw.standard_normal(len(points)))
        fit = Interpolation(points[:30], us[:30])
        predicted, half = fit.predict(points[30:])
        errors = np.abs(predicted / us[30:] - 1)
        claimed.append(fit.error)
        true.append(errors.mean())
        inside.append((errors <= half).mean())
    assert np.mean(claimed) == pytest.approx(np.mean(true), rel=0.25)
    assert np.mean(inside) > 0.9


AXIS = np.arange(8, 257, 8.0)
PLANE = np.array(list(itertools.product(AXIS[:16], AXIS[:16])))
LINES = {
    "every second width": lambda draw: AXIS[::2],
    "every third width": lambda draw: AXIS[::3],
    "every third width and the last": lambda draw: np.append(AXIS[::3], 256.0),
    "multiples of 32": lambda draw: AXIS[3::4],
    "powers of two": lambda draw: 2.0 ** np.arange(3, 9),
    "uneven": lambda draw: np.array([8, 24, 32, 64, 96, 128, 192, 256.0]),
    "a third at random": lambda draw: np.sort([8, 256, *draw.choice(AXIS[1:-1], 12, replace=False)]),
    "three quarters at random": lambda draw: np.sort([8, 256, *draw.choice(AXIS[1:-1], 22, replace=False)]),
}


def every_third_but_some(draw):
    grid = np.isin(PLANE, AXIS[:16:3]).all(axis=1)
    return grid & (draw.random_sample(len(PLANE)) < 0.85) | np.isin(PLANE, [8, 128]).all(axis=1)


def at_random(draw):
    return (draw.random_sample(len(PLANE)) < 0.15) | np.isin(PLANE, [8, 128]).all(axis=1)


def smooth(draw, axes):
    least, kind = np.exp(draw.uniform(math.log(2), math.log(40))), draw.randint(4)

    def of(widths):
        share = (widths / 256).prod(axis=1) * 2 ** (axes - 1)
        return [
            least + 40 * share,
            least / 5 + 60 * share,
            least + 50 * share**0.5,
            np.maximum(least + 3 * share, 45 * share),
        ][kind]

    return of


def stairs(draw, axes):
    """Steps of any period from any width on."""
    of, period = smooth(draw, axes), draw.choice([12, 16, 24, 32, 48, 64, 96, 128], size=axes)
    first = draw.random_sample(axes) * period
    return lambda widths: of(np.maximum(np.ceil((widths - first) / period) * period + first, 1))


def cliff(draw, axes):
    of, at, factor = smooth(draw, axes), draw.uniform(24, 120 if axes > 1 else 240), draw.uniform(1.2, 2)
    return lambda widths: of(widths) * np.where(widths[:, 0] > at, factor, 1)


def hole(draw, axes):
    of, at, factor = smooth(draw, axes), draw.uniform(24, 90 if axes > 1 else 220), draw.choice([0.6, 0.75, 0.9])
    return lambda widths: of(widths) * np.where((widths[:, 0] > at) & (widths[:, 0] <= at + 32), factor, 1)


def judged(surface, seed, design, noise):
    """Share of points between knots that are inside of their intervals, half of these in the mean, true and claimed error."""
    draw = np.random.RandomState(seed)
    if design in LINES:
        knots = LINES[design](draw)[:, None]
        others = np.setdiff1d(AXIS, knots)[:, None]
    else:
        known = {"a grid with holes": every_third_but_some, "scattered": at_random}[design](draw)
        knots, others = PLANE[known], PLANE[~known]
    others = others[((others >= knots.min(axis=0)) & (others <= knots.max(axis=0))).all(axis=1)]
    of = surface(draw, knots.shape[1])
    us, truth = (of(widths) * np.exp(noise * draw.standard_normal(len(widths))) for widths in (knots, others))
    fit = Interpolation(knots, us)
    predicted, half = fit.predict(others)
    errors = np.abs(predicted - truth) / predicted
    return (errors <= half + 1e-9).mean(), half.mean(), np.abs(predicted / truth - 1).mean(), fit.error


@pytest.mark.parametrize("design", [*LINES, "a grid with holes", "scattered"])
@pytest.mark.parametrize("surface", [smooth, stairs, cliff, hole])
def test_intervals_hold_wherever_the_knots_are(surface, design):
    """On average over surfaces, half of them with 3 % of noise; a hole that no knot is in cannot be known of."""
    seeds = range(6 if design in LINES else 4)
    found = np.array([judged(surface, seed, design, noise=0.03 * (seed % 2)) for seed in seeds])
    inside, half, true, claimed = found.mean(axis=0)
    assert inside >= (0.9 if surface is hole else 0.93)
    assert claimed >= 0.5 * true
    assert half < 1


@pytest.mark.parametrize("design", ["a third at random", "three quarters at random", "scattered"])
def test_smooth_surfaces_have_narrow_intervals_where_knots_would_show_steps(design):
    half, true, claimed = np.median([judged(smooth, seed, design, noise=0.0)[1:] for seed in range(5)], axis=0)
    assert max(half, true, claimed) < 0.01


@pytest.mark.parametrize("gap", [16, 24, 32])
def test_smooth_surfaces_are_followed_between_evenly_spaced_knots(gap):
    knots = np.arange(8, 257, gap)[:, None]
    others = np.setdiff1d(AXIS[knots.max() > AXIS], knots)[:, None]
    for of in (lambda w: 20 + w / 10, lambda w: 1 + w / 5, lambda w: 5 + 3 * np.sqrt(w), lambda w: 20 + w**2 / 800):
        us, _ = Interpolation(knots, of(knots[:, 0])).predict(others)
        assert us == pytest.approx(of(others[:, 0]), rel=0.05)


@pytest.mark.parametrize("step", [12, 24, 48])
def test_steps_that_evenly_spaced_knots_cannot_show_are_allowed_for(step):
    """A latency that does not fall is between those of the knots around it; knots themselves are known."""
    known = (PLANE % 24 == 8).all(axis=1)
    us = 5 + np.ceil(PLANE[:, 0] / step) * step * PLANE[:, 1] / 900
    predicted, half = Interpolation(PLANE[known], us[known]).predict(PLANE)
    within = (PLANE[known].max(axis=0) >= PLANE).all(axis=1)
    assert (half[known] < 0.05).all()
    assert (np.abs(us - predicted) / predicted <= half)[within].all()
