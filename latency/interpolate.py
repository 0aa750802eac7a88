"""Latency between measured widths, from blocks measured anywhere: a grid need not be complete.

Devices compute channels in groups of 8 to 128, so latency over width is a staircase, and which one differs by device, operator and axis;
kernels also differ by what divides a width, so that some widths cost more than wider ones. Several models are tried, and those that predict
each measured block best from all others (leave one out) are averaged: on each axis latency follows the width itself or the width rounded up
to whole groups, with or without a term for the unused share of the last group and one for the power of two that divides the width.

Intervals are calibrated by the errors of models at blocks that they leave out (conformal prediction; Barber et al. 2021, jackknife). These
say nothing of widths that differ in kind from every measured one, such as multiples of 64 where only odd multiples of 8 were measured:
their interval is as wide as the worst error seen, and no narrower than `UNSEEN`. Nor do they say anything of steps as wide as the gap of
evenly spaced knots: widths between those have an interval of at least `UNSEEN`, too.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

UNSEEN = 0.15
"""Half-width of the interval, relative, that a width has at least where no measured width is divisible by the same power of two, or all are
a whole number of gaps apart from one another and it is not."""

_GROUPS = (16, 32, 64, 128)
_REACHES = (0.5, 1.5, 4.0)
_SLACKS = (math.inf, 1.0, 0.25)  # the same for the unused share of the last group; infinite: it plays no part
_ALIGNS = (math.inf, 1.5)  # the same for the power of two that divides the width
_NUGGETS = (1e-5, 1e-2)  # variance of noise, as a share of the variance of what the trend does not explain
_ALIGNMENT = 6  # widths that 64 divides are alike
_FINALISTS = 6  # combinations of groups that are tried with every kernel
_TRIED = 96  # number of knots, at most, by which models are ranked; the best are fitted to all
_FOLDS = 5  # a model is judged by blocks that had no part in its choice
_ALIKE = 1.5  # models whose error is within this factor of the best one's are as believable
_COUNCIL = 12  # number of them that are averaged at most
_NOISE = 1e-3  # relative errors below are as good as none, and no interval is narrower
_LIKELY = 1.96  # standard deviations of a 95 % interval
_COVERAGE = 0.95


class _Kernel(NamedTuple):
    """Length scales of the covariance, each in the unit of its coordinate; infinite where the coordinate plays no part."""

    reach: float  # in octaves of the width
    slack: float = math.inf
    align: float = math.inf
    nugget: float = _NUGGETS[0]


class _Model(NamedTuple):
    """Universal kriging (Matheron 1969): a multilinear trend and a Gaussian process, both relative to a first fit of the trend."""

    groups: tuple[int, ...]  # of each axis; 1 where latency follows the width itself
    kernel: _Kernel
    scale: np.ndarray  # of the first fit: a coefficient each product of axes
    inverse: np.ndarray  # of the kriging system
    weights: np.ndarray  # that inverse times the values
    deviation: float  # of the process, relative
    left_out: np.ndarray  # relative error at each knot when it is predicted from the others
    surprise: np.ndarray  # the same in standard deviations of that prediction


class Interpolation:
    """What a family of blocks costs at widths that were not measured.

    Attributes:
        error: mean relative error of predicting each measured block from the others, by a model chosen without it; NaN where there are too
            few to tell.
        groups: of each axis how many channels the device seems to compute together; 1 for no such staircase.
    """

    def __init__(self, widths: np.ndarray, us: np.ndarray) -> None:
        """Fit.

        Args:
            widths: of the measured blocks [blocks, axes], no two alike, all above 0.
            us: their latency [blocks].
        """
        self._widths, self._us = np.asarray(widths, dtype=float), np.asarray(us, dtype=float)
        self._open = np.flatnonzero(np.ptp(self._widths, axis=0))
        self._knots = self._widths[:, self._open]
        self._models = self._believable()
        self.error, self._likely, self._worst = self._judged()
        self.groups = tuple(dict(zip(self._open.tolist(), self._models[0].groups, strict=True)).get(i, 1) for i in range(widths.shape[1]))

    def predict(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latency and how far off it may be.

        Args:
            widths: [points, axes].

        Returns:
            Microseconds [points], and half the width of their 95 % intervals, relative [points].
        """
        points = np.asarray(widths, dtype=float)[:, self._open]
        council = self._models[:_COUNCIL]
        found = [self._predict(model, points) for model in council if _error(model) <= _ALIKE * _error(council[0])] or [
            self._predict(council[0], points)
        ]
        us, deviation = np.mean([us for us, _ in found], axis=0), np.mean([deviation for _, deviation in found], axis=0)
        if math.isnan(self.error):
            return us, np.full(len(us), self._models[0].deviation)
        # Models that do equally well on what is known but differ here leave it open which is right.
        apart = np.max([np.abs(other / us - 1) for other, _ in found], axis=0)
        half = np.hypot(self._likely * deviation, apart) + _NOISE
        return us, np.maximum(half, self._unlike(points))

    def _unlike(self, points: np.ndarray) -> np.ndarray:
        """Least half-width for points of which a width's power of two is that of at most one knot; 0 for others.

        The worst error seen is one of unlike knots, if there are any. Where knots are of one or two kinds, little tells what others cost.
        """
        asked, known = _alignments(points), _alignments(self._knots)
        counts = (asked[:, None] == known[None]).sum(axis=1)
        kinds = [sum((column == kind).sum() > 1 for kind in np.unique(column)) for column in known.T]
        least = [max(self._worst, UNSEEN if number < 3 else 0.0) for number in kinds]
        unlike = np.where(counts < 2, least, 0.0).max(axis=1, initial=0.0)
        return np.maximum(unlike, np.where(self._aliased(points), UNSEEN, 0.0))

    def _aliased(self, points: np.ndarray) -> np.ndarray:
        """Whether points lie between knots that are whole gaps apart on an axis: a step in each gap looks like a slope to all of them."""
        knots, widths = self._knots.astype(int), points.astype(int)
        gaps = np.gcd.reduce(knots - knots[0], axis=0)
        return ((widths - knots[0]) % gaps != 0).any(axis=1)

    def _believable(self) -> list[_Model]:
        """The models that predict the knots best from one another, the best one first."""
        knots, us = self._knots, self._us
        axes = knots.shape[1]
        if len(us) < 2**axes + 3:  # too few to leave one out
            model = _fit(knots, us, (1,) * axes, _Kernel(4.0))
            return [model._replace(left_out=np.array([math.nan]), deviation=float(np.ptp(us) / us.min()))]
        if len(us) <= _TRIED:
            return _ranked(knots, us)
        some = np.random.RandomState(0).permutation(len(us))[:_TRIED]
        best = _ranked(knots[some], us[some])[: 2 * _COUNCIL]
        return sorted((_fit(knots, us, model.groups, model.kernel) for model in best), key=_rank)

    def _judged(self) -> tuple[float, float, float]:
        """Mean error, standard deviations of a 95 % interval and the largest error, at knots that had no part in choosing the model."""
        if math.isnan(_error(self._models[0])):
            return math.nan, _LIKELY, math.nan
        errors, surprises = (np.abs([getattr(model, name) for model in self._models]) for name in ("left_out", "surprise"))
        fold = np.random.RandomState(0).permutation(len(self._us)) % _FOLDS
        chosen = np.array([errors[:, fold != k].mean(axis=1).argmin() for k in range(_FOLDS)])[fold]
        knots = np.arange(len(self._us))
        unseen, surprise = errors[chosen, knots], np.sort(surprises[chosen, knots])
        rank = math.ceil(len(knots) * _COVERAGE) - 1
        return float(unseen.mean()), max(_LIKELY, float(surprise[rank])), float(unseen.max())

    def _predict(self, model: _Model, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at, knots = _coordinates(points, model.groups), _coordinates(self._knots, model.groups)
        trend = _products(at.rounded)
        unit = _unit(trend, model.scale, self._us)
        size = knots.rounded.max(axis=0, initial=1.0).prod()
        column = np.hstack([_alike(at, knots, model.kernel), trend / size / unit[:, None]])
        us = column @ model.weights * unit
        nugget = model.kernel.nugget
        variance = np.maximum(1 + nugget - np.einsum("ij,jk,ik->i", column, model.inverse, column, optimize=True), nugget)
        return np.maximum(us, self._us.min() / 2), model.deviation * np.sqrt(variance)


def _ranked(knots: np.ndarray, us: np.ndarray) -> list[_Model]:
    """All models of these knots, the best one first; of equals the one without groups."""
    # Where no group holds two of the measured widths, nothing tells a staircase from a line.
    options = [
        (1, *(group for group in _GROUPS if len(np.unique(np.ceil(column / group))) < len(np.unique(column)) and column.max() > group))
        for column in knots.T
    ]
    first = [_fit(knots, us, groups, _Kernel(_REACHES[1])) for groups in itertools.product(*options)]
    finalists = dict.fromkeys([(1,) * knots.shape[1], *(model.groups for model in sorted(first, key=_rank)[:_FINALISTS])])
    models = [
        _fit(knots, us, groups, _Kernel(*scales))
        for groups in finalists
        for scales in itertools.product(_REACHES, _SLACKS if max(groups, default=1) > 1 else (math.inf,), _ALIGNS, _NUGGETS)
    ]
    return sorted(models, key=_rank)


def _fit(knots: np.ndarray, us: np.ndarray, groups: tuple[int, ...], kernel: _Kernel) -> _Model:
    at = _coordinates(knots, groups)
    trend = _products(at.rounded)
    scale = np.linalg.lstsq(trend / us[:, None], np.ones(len(us)), rcond=None)[0]
    unit = _unit(trend, scale, us)
    count, terms = trend.shape
    system = np.zeros((count + terms, count + terms))
    system[:count, :count] = _alike(at, at, kernel) + kernel.nugget * np.eye(count)
    # Columns of one size: else the inverse loses what the narrow widths tell.
    system[:count, count:] = trend / at.rounded.max(axis=0, initial=1.0).prod() / unit[:, None]
    system[count:, :count] = system[:count, count:].T
    system[count:, count:] = -1e-9 * np.eye(terms)  # where the knots do not tell terms of the trend apart
    inverse = np.linalg.inv(system)
    weights = inverse[:, :count] @ (us / unit)
    precision = np.maximum(np.diag(inverse)[:count], 1e-12)
    residual = weights[:count] / precision  # leave one out in closed form (Dubrule 1983)
    deviation = float(np.sqrt(np.mean(residual**2 * precision)))
    surprise = residual * np.sqrt(precision) / max(deviation, 1e-12)
    return _Model(groups, kernel, scale, inverse, weights, deviation, residual * unit / us, surprise)


def _unit(trend: np.ndarray, scale: np.ndarray, us: np.ndarray) -> np.ndarray:
    """The fitted trend, never near 0: what latencies are relative to."""
    return np.clip(trend @ scale, us.min() / 2, None)


def _error(model: _Model) -> float:
    return float(np.mean(np.abs(model.left_out)))


def _rank(model: _Model) -> tuple[float, bool, float]:
    """The better model first; of equals the one without groups."""
    error = _error(model)
    return max(error, _NOISE), max(model.groups, default=1) > 1, error


class _Coordinates(NamedTuple):
    """Where points are for a kernel [points, axes]."""

    rounded: np.ndarray  # widths rounded up to whole groups
    unused: np.ndarray  # share of the last group
    alignment: np.ndarray  # power of two that divides the width


def _coordinates(widths: np.ndarray, groups: tuple[int, ...]) -> _Coordinates:
    sizes = np.array(groups, dtype=float)
    rounded = np.ceil(widths / sizes) * sizes if len(groups) else widths
    rounded = np.where(sizes == 1, widths, rounded)
    return _Coordinates(rounded, (rounded - widths) / sizes, _alignments(widths))


def _alignments(widths: np.ndarray) -> np.ndarray:
    """Exponent of the largest power of two, up to 64, that divides each width; 0 for what is not whole."""
    powers = 2.0 ** np.arange(1, _ALIGNMENT + 1)
    return (widths[..., None] % powers == 0).sum(axis=-1).astype(float)


def _products(rounded: np.ndarray) -> np.ndarray:
    """The products of every subset of the axes: what a multilinear function is a sum of."""
    axes = range(rounded.shape[1])
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, size) for size in range(len(axes) + 1))
    return np.stack([rounded[:, list(subset)].prod(axis=1) for subset in subsets], axis=1)


def _alike(a: _Coordinates, b: _Coordinates, kernel: _Kernel) -> np.ndarray:
    """Covariance of the process between points: Gaussian in each coordinate, the width itself in octaves."""
    apart = _squares(np.log2(a.rounded), np.log2(b.rounded)) / kernel.reach**2
    if math.isfinite(kernel.slack):
        apart = apart + _squares(a.unused, b.unused) / kernel.slack**2
    if math.isfinite(kernel.align):
        apart = apart + _squares(a.alignment, b.alignment) / kernel.align**2
    return np.exp(-apart / 2)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(axis=-1)
