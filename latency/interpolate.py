"""Latency between measured widths, from blocks measured at any points; the grid need not be complete.

Devices compute channels in groups of 8 to 128, so latency over width is a staircase, which differs by device, operator
and axis. Kernels also depend on the divisors of a width, so that some widths cost more than wider ones. Several models
are fitted, and those that predict each measured block best from all others (leave one out) are averaged: on each axis
latency follows the width itself or the width rounded up to whole groups, with or without a term for the unused share of
the last group and one for the power of two that divides the width.

Intervals are calibrated by the errors of models at blocks that they leave out (conformal prediction; Barber et al.
2021, jackknife). Two kinds of points resemble no block that can be left out and are predicted from the size of a width
alone:

- Widths between evenly spaced ones: a step in each gap looks like a slope. Wherever the steps are, a non-decreasing
  latency lies between those of the measured widths on both sides, so the interval spans them. In a grid it always does,
  as there the others of a row determine the cost of a left-out block. On an uneven line the left-out blocks determine
  which share of that span suffices; on any line they determine how far latency falls.
- Widths whose power of two does not occur among the knots, such as multiples of 64 if only odd multiples of 8 were
  measured. Their interval is wider by `UNSEEN`, or by the worst error at knots of three kinds or more if that is less.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

UNSEEN = 0.2
"""Relative widening of the interval of a width if no measured width is divisible by the same power of two."""

_GROUPS = (16, 32, 64, 128)
_REACHES = (0.5, 1.5, 4.0)
_SLACKS = (math.inf, 1.0, 0.25)  # the same for the unused share of the last group; infinite: ignored
_ALIGNS = (math.inf, 1.5)  # the same for the power of two that divides the width
_NUGGETS = (1e-5, 1e-2)  # noise variance as a share of the variance that the trend does not explain
_ALIGNMENT = 6  # multiples of 64 count as equally aligned
_FINALISTS = 6  # combinations of groups that are fitted with every kernel
_TRIED = 96  # maximum number of knots by which models are ranked; the best are fitted to all knots
_FOLDS = 5  # a model is judged by blocks that had no part in choosing it
_ALIKE = 1.5  # models whose error is within this factor of the best one's are equally credible
_COUNCIL = 12  # maximum number of models that are averaged
_NOISE = 1e-3  # smaller relative errors count as none, and no interval is narrower
_LIKELY = 1.96  # standard deviations of a 95 % interval
_COVERAGE = 0.95
_FEW = 0.1  # share of the widths of an evenly spaced axis that may be off the grid
MEAN_TO_LIKELY = math.sqrt(2 / math.pi) / _LIKELY
"""Mean absolute error divided by the half-width of the 95 % interval, for a normal error."""


class _Kernel(NamedTuple):
    """Length scales of the covariance, each in the unit of its coordinate; infinite if the coordinate is ignored."""

    reach: float  # in octaves of the width
    slack: float = math.inf
    align: float = math.inf
    nugget: float = _NUGGETS[0]


class _KrigingModel(NamedTuple):
    """Universal kriging (Matheron 1969): a multilinear trend and a Gaussian process, relative to a first trend fit."""

    groups: tuple[int, ...]  # group size per axis; 1 if latency follows the width itself
    kernel: _Kernel
    scale: np.ndarray  # coefficients of the first fit, one per product of axes
    sizes: np.ndarray  # norms of the trend's columns relative to that fit
    inverse: np.ndarray  # inverse of the kriging system
    weights: np.ndarray  # that inverse times the values
    deviation: float  # relative standard deviation of the process
    left_out: np.ndarray  # error of predicting each knot from the others, relative to the measured value
    surprise: np.ndarray  # the same in standard deviations of the prediction

    @property
    def extras(self) -> int:
        """Number of properties of a width that the model uses beyond its size."""
        return (
            sum(group > 1 for group in self.groups)
            + math.isfinite(self.kernel.slack)
            + math.isfinite(self.kernel.align)
        )


class _Council(NamedTuple):
    """The averaged models, and how well such models predict knots that had no part in choosing them.

    The numbers are NaN if there are too few knots.
    """

    models: list[_KrigingModel]  # best first
    error: float  # mean relative error
    worst: float  # largest relative error, including the ends
    likely: float  # standard deviations of a 95 % interval
    share: float  # share of the span of a point's neighbours on a line that a 95 % interval covers
    fall: float  # relative amount by which the interval extends beyond that


class Interpolation:
    """Latency of a family of blocks at widths that were not measured.

    Attributes:
        error: mean relative error of predicting each measured block from the others by a model chosen without it. On an
            evenly spaced grid, which does not reveal what happens between its widths, at least the error that the
            intervals there imply. NaN if there are too few blocks.
        groups: number of channels that the device seems to compute together, per axis; 1 for no staircase.
    """

    def __init__(self, widths: np.ndarray, us: np.ndarray) -> None:
        """Fit the models.

        Args:
            widths: distinct positive widths of the measured blocks [blocks, axes].
            us: latency of the blocks in microseconds [blocks].
        """
        self._widths, self._us = np.asarray(widths, dtype=float), np.asarray(us, dtype=float)
        self._open = np.flatnonzero(np.ptp(self._widths, axis=0))
        self._knots = self._widths[:, self._open]
        self._levels = [np.unique(column) for column in self._knots.T]
        nodes = math.prod(map(len, self._levels))
        self._grid = 2 * len(self._us) > nodes  # most nodes were measured; true of any line
        models = _believable(self._knots, self._us)
        self._council = _elect(models, self._knots, self._us)
        self._plain = _elect([model for model in models if not model.extras], self._knots, self._us)
        self._judged = not math.isnan(self._council.error)
        self.error = max(self._council.error, self._between_even()) if self._judged else math.nan
        groups = dict(zip(self._open.tolist(), self._council.models[0].groups, strict=True))
        self.groups = tuple(groups.get(axis, 1) for axis in range(self._widths.shape[1]))

    def predict(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict latencies with their uncertainty.

        Args:
            widths: [points, axes].

        Returns:
            Microseconds [points], and the relative half-width of their 95 % intervals [points].
        """
        points = np.asarray(widths, dtype=float)[:, self._open]
        us, half = self._averaged(points, self._council)
        if not self._judged:  # only the spread of the blocks is known
            return us, np.full(len(us), np.ptp(self._us) / self._us.min())
        aliased, unlike = self._aliased(points), self._unlike(points)
        plain = aliased.any(axis=1) | (unlike > 0)
        us[plain], half[plain] = self._averaged(points[plain], self._plain)
        new = self._new(points) if self._grid else aliased
        some = np.flatnonzero(new.any(axis=1))
        span = self._span(points[some], us[some], new[some])
        if len(self._levels) == 1:
            share = np.where(plain[some], self._plain.share, self._council.share)
            fall = np.where(plain[some], self._plain.fall, self._council.fall)
            half[some] = np.where(aliased[some, 0], 1.0, share) * span + fall + _NOISE
        else:
            half[some] = np.maximum(half[some], span)
        return us, half + unlike

    def _averaged(self, points: np.ndarray, council: _Council) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean prediction of the models, and the half-width given their errors at left-out knots."""
        predictions = [self._predict(model, points) for model in council.models]
        us, deviation = (
            np.mean([us for us, _ in predictions], axis=0),
            np.median([deviation for _, deviation in predictions], axis=0),
        )
        # Models that agree on the knots but differ here leave open which one is right.
        apart = np.max([np.abs(other / us - 1) for other, _ in predictions], axis=0)
        return us, np.hypot(council.likely * deviation, apart) + _NOISE

    def _new(self, points: np.ndarray) -> np.ndarray:
        """Return on which axes no block of that width was measured [points, axes]."""
        known = [np.isin(column, levels) for column, levels in zip(points.T, self._levels, strict=True)]
        return ~np.stack(known, axis=1) if known else np.zeros(points.shape, dtype=bool)

    def _aliased(self, points: np.ndarray) -> np.ndarray:
        """Return on which axes a width is new and off the even grid of almost all measured widths [points, axes]."""
        aliased = self._new(points)
        for axis, (widths, levels) in enumerate(zip(points.T, self._levels, strict=True)):
            gap, _ = _spacing(levels)
            aliased[:, axis] &= ((widths[:, None] - levels) % gap == 0).sum(axis=1) < max(2.0, _FEW * len(levels))
        return aliased

    def _unlike(self, points: np.ndarray) -> np.ndarray:
        """Return the widening of intervals at widths whose power of two at most one knot of an axis shares [points].

        With knots of three kinds or more, the worst error at one of them bounds that of other kinds.
        """
        new_alignments, alignments = _alignments(points), _alignments(self._knots)
        counts = (new_alignments[:, None] == alignments[None]).sum(axis=1)
        kinds = [sum((column == kind).sum() > 1 for kind in np.unique(column)) for column in alignments.T]
        wider = [UNSEEN if number < 3 else min(UNSEEN, self._council.worst + _NOISE) for number in kinds]
        return np.where(counts < 2, wider, 0.0).max(axis=1, initial=0.0)

    def _span(self, points: np.ndarray, us: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Return the distance of predictions from the latency at the neighbouring measured widths [points]."""
        reach = np.zeros(len(points))
        for sides in itertools.product((False, True), repeat=new.shape[1]):
            corners = points.copy()
            for axis, (levels, above) in enumerate(zip(self._levels, sides, strict=True)):
                at = np.searchsorted(levels, points[:, axis]) - (not above)
                corners[:, axis] = np.where(new[:, axis], levels[np.clip(at, 0, len(levels) - 1)], points[:, axis])
            corner_us, half = self._averaged(corners, self._council)
            reach = np.maximum(reach, np.maximum(corner_us * (1 + half) / us - 1, 1 - corner_us * (1 - half) / us))
        return reach

    def _between_even(self) -> float:
        """Return the mean relative error implied by the intervals midway between even widths; 0 for an uneven grid."""
        if not self._grid or all(_spacing(levels)[1] <= 1 - _FEW for levels in self._levels):
            return 0.0
        points = list(itertools.product(*map(_middles, self._levels)))
        widths = np.tile(self._widths[:1], (len(points), 1))
        widths[:, self._open] = points
        return float(np.minimum(self.predict(widths)[1], 1.0).mean()) * MEAN_TO_LIKELY

    def _predict(self, model: _KrigingModel, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at, knots = _coordinates(points, model.groups), _coordinates(self._knots, model.groups)
        trend = _products(at.rounded)
        unit = _unit(trend, model.scale, self._us)
        column = np.hstack([_covariance(at, knots, model.kernel), trend / model.sizes / unit[:, None]])
        us = column @ model.weights * unit
        nugget = model.kernel.nugget
        variance = np.maximum(1 + nugget - ((column @ model.inverse) * column).sum(axis=1), nugget)
        return np.maximum(us, self._us.min() / 2), model.deviation * np.sqrt(variance)


def _elect(models: list[_KrigingModel], knots: np.ndarray, us: np.ndarray) -> _Council:
    """Choose the best models, judged at knots that had no part in choosing them; among exact ones, the simplest."""
    if not len(models[0].left_out):
        return _Council(models[:1], *[math.nan] * 5)
    # The single outermost knot of an axis is not judged: its prediction is an extrapolation, which is never asked for.
    beyond = [
        (column == end) & ((column == end).sum() == 1) for column in knots.T for end in (column.min(), column.max())
    ]
    judged = ~np.any(beyond, axis=0)
    errors, surprises = (np.abs([getattr(model, name) for model in models]) for name in ("left_out", "surprise"))
    means = errors[:, judged].mean(axis=1)
    order = sorted(range(len(models)), key=lambda i: (max(means[i], _NOISE), models[i].extras, means[i]))
    least = max(means[order[0]], _NOISE)
    best = [models[i] for i in order if means[i] <= _ALIKE * least][:_COUNCIL]
    if least <= _NOISE:
        best = [model for model in best if model.extras == best[0].extras]
    fold = np.random.RandomState(0).permutation(len(us)) % _FOLDS
    chosen = (
        np.array([errors[:, judged & (fold != k)].mean(axis=1).argmin() for k in range(_FOLDS)])[fold],
        np.arange(len(us)),
    )
    predicted = np.maximum(us * (1 - np.array([model.left_out for model in models])[chosen]), us.min() / 2)
    line_errors = _line_errors(knots[:, 0], us, predicted) if knots.shape[1] == 1 else (math.nan, math.nan)
    unseen, surprise = errors[chosen], surprises[chosen][judged]
    return _Council(
        best, float(unseen[judged].mean()), float(unseen.max()), max(_LIKELY, likely(surprise)), *line_errors
    )


def _line_errors(widths: np.ndarray, us: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Return the errors at the knots of a line: as a share of their neighbours' span, and relatively beyond that span.

    The share is doubled: a prediction midway between its neighbours is off by half of a step between them, one close to
    a neighbour by all of it.
    """
    order = np.argsort(widths)
    us, inner = us[order], predicted[order][1:-1]
    span = np.maximum(np.maximum(us[:-2], us[2:]) - inner, inner - np.minimum(us[:-2], us[2:]))
    error = np.abs(us[1:-1] - inner)
    return min(2 * likely(error / np.maximum(span, 1e-12)), 1.0), likely(np.maximum(error - span, 0.0) / inner)


def likely(errors: np.ndarray) -> float:
    """Return the bound of a further error at 95 % probability; above the largest error if there are too few of them."""
    errors, enough = np.sort(errors), _COVERAGE / (1 - _COVERAGE)
    rank = min(math.ceil((len(errors) + 1) * _COVERAGE), len(errors))
    return float(errors[rank - 1]) * max(1.0, math.sqrt(enough / len(errors)))


def _spacing(levels: np.ndarray) -> tuple[float, float]:
    """Return the most common gap between neighbouring widths, the smallest of several, and its share of the gaps."""
    gaps, counts = np.unique(np.diff(levels), return_counts=True)
    return float(gaps[counts.argmax()]), counts.max() / counts.sum()


def _middles(levels: np.ndarray) -> np.ndarray:
    """Return a width near the middle of each gap: if possible, a multiple of the widths' greatest common divisor."""
    gaps, unit = np.diff(levels), float(np.gcd.reduce(levels.astype(int)))
    return levels[:-1] + np.where(gaps > unit, unit * np.maximum(gaps // (2 * unit), 1), gaps / 2)


def _believable(knots: np.ndarray, us: np.ndarray) -> list[_KrigingModel]:
    """Return the models that predict the knots best from one another."""
    axes = knots.shape[1]
    if len(us) < 2**axes + 3:  # too few to leave one out
        return [_fit_kriging(knots, us, (1,) * axes, _Kernel(4.0))._replace(left_out=np.empty(0))]
    if len(us) <= _TRIED:
        return _ranked(knots, us)
    some = np.random.RandomState(0).permutation(len(us))[:_TRIED]
    best = _ranked(knots[some], us[some])
    tried = [*[model for model in best if model.extras][: 2 * _COUNCIL], *[model for model in best if not model.extras]]
    return [_fit_kriging(knots, us, model.groups, model.kernel) for model in tried]


def _ranked(knots: np.ndarray, us: np.ndarray) -> list[_KrigingModel]:
    """Return all models of these knots, best first."""
    # If no group holds two of the measured widths, a staircase cannot be told from a line.
    options = [
        (
            1,
            *(
                group
                for group in _GROUPS
                if len(np.unique(np.ceil(column / group))) < len(np.unique(column)) and column.max() > group
            ),
        )
        for column in knots.T
    ]
    first = [_fit_kriging(knots, us, groups, _Kernel(_REACHES[1])) for groups in itertools.product(*options)]
    finalists = dict.fromkeys(
        [(1,) * knots.shape[1], *(model.groups for model in sorted(first, key=_rank)[:_FINALISTS])]
    )
    models = [
        _fit_kriging(knots, us, groups, _Kernel(*scales))
        for groups in finalists
        for scales in itertools.product(
            _REACHES, _SLACKS if max(groups, default=1) > 1 else (math.inf,), _ALIGNS, _NUGGETS
        )
    ]
    return sorted(models, key=_rank)


def _fit_kriging(knots: np.ndarray, us: np.ndarray, groups: tuple[int, ...], kernel: _Kernel) -> _KrigingModel:
    at = _coordinates(knots, groups)
    trend = _products(at.rounded)
    scale = np.linalg.lstsq(trend / us[:, None], np.ones(len(us)), rcond=None)[0]
    unit = _unit(trend, scale, us)
    count, terms = trend.shape
    sizes = np.linalg.norm(trend / unit[:, None], axis=0)  # else the ridge would shrink terms with small columns
    system = np.zeros((count + terms, count + terms))
    system[:count, :count] = _covariance(at, at, kernel) + kernel.nugget * np.eye(count)
    system[:count, count:] = trend / sizes / unit[:, None]
    system[count:, :count] = system[:count, count:].T
    system[count:, count:] = -1e-9 * np.eye(terms)  # where the knots do not tell terms of the trend apart
    inverse = np.linalg.inv(system)
    weights = inverse[:, :count] @ (us / unit)
    precision = np.maximum(np.diag(inverse)[:count], 1e-12)
    residual = weights[:count] / precision  # leave one out in closed form (Dubrule 1983)
    deviation = float(np.sqrt(np.mean(residual**2 * precision)))
    surprise = residual * np.sqrt(precision) / max(deviation, 1e-12)
    return _KrigingModel(groups, kernel, scale, sizes, inverse, weights, deviation, residual * unit / us, surprise)


def _unit(trend: np.ndarray, scale: np.ndarray, us: np.ndarray) -> np.ndarray:
    """Return the fitted trend, bounded away from 0, to which latencies are relative."""
    return np.clip(trend @ scale, us.min() / 2, None)


def _rank(model: _KrigingModel) -> tuple[float, int, float]:
    """Return the sort key of a model: the better one first; of equals, the simpler one."""
    error = float(np.mean(np.abs(model.left_out)))
    return max(error, _NOISE), model.extras, error


class _Coordinates(NamedTuple):
    """Coordinates of points in a kernel's space [points, axes]."""

    rounded: np.ndarray  # widths rounded up to whole groups
    unused: np.ndarray  # share of the last group
    alignment: np.ndarray  # power of two that divides the width


def _coordinates(widths: np.ndarray, groups: tuple[int, ...]) -> _Coordinates:
    sizes = np.array(groups, dtype=float)
    rounded = np.ceil(widths / sizes) * sizes if len(groups) else widths
    rounded = np.where(sizes == 1, widths, rounded)
    return _Coordinates(rounded, (rounded - widths) / sizes, _alignments(widths))


def _alignments(widths: np.ndarray) -> np.ndarray:
    """Return the exponent of the largest power of two, up to 64, that divides each width; 0 for fractions."""
    powers = 2.0 ** np.arange(1, _ALIGNMENT + 1)
    return (widths[..., None] % powers == 0).sum(axis=-1).astype(float)


def _products(rounded: np.ndarray) -> np.ndarray:
    """Return the products of every subset of the axes, the terms of a multilinear function."""
    axes = range(rounded.shape[1])
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, size) for size in range(len(axes) + 1))
    return np.stack([rounded[:, list(subset)].prod(axis=1) for subset in subsets], axis=1)


def _covariance(a: _Coordinates, b: _Coordinates, kernel: _Kernel) -> np.ndarray:
    """Return the covariance of the process between points: Gaussian in each coordinate, with widths in octaves."""
    apart = _squares(np.log2(a.rounded), np.log2(b.rounded)) / kernel.reach**2
    if math.isfinite(kernel.slack):
        apart = apart + _squares(a.unused, b.unused) / kernel.slack**2
    if math.isfinite(kernel.align):
        apart = apart + _squares(a.alignment, b.alignment) / kernel.align**2
    return np.exp(-apart / 2)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(axis=-1)
