"""Latency between measured widths, from blocks measured anywhere: a grid need not be complete.

Devices compute channels in groups of 8 to 128, so latency over width is a staircase, and which one differs by device,
operator and axis; kernels also differ by what divides a width, so that some widths cost more than wider ones. Several
models are tried, and those that predict each measured block best from all others (leave one out) are averaged: on each
axis latency follows the width itself or the width rounded up to whole groups, with or without a term for the unused
share of the last group and one for the power of two that divides the width.

Intervals are calibrated by the errors of models at blocks that they leave out (conformal prediction; Barber et al.
2021, jackknife). Two kinds of points are unlike any block that can be left out, and are predicted from the size of a
width alone:

- Widths between evenly spaced ones: a step in each gap looks like a slope. Wherever steps are, a latency that does not
  fall is between those of the measured widths on both sides, so the interval spans them. In a grid it always does, as
  there the others of a row tell what a block that is left out costs. On an uneven line the blocks that are left out
  tell which share of that span is enough; on any line they tell by how much latency falls.
- Widths whose power of two is not among those of the knots, such as multiples of 64 where only odd multiples of 8 were
  measured. Their interval is wider by `UNSEEN`, or the worst error at knots of three kinds or more if that is less.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

UNSEEN = 0.2
"""By how much the interval of a width is wider, relative, where no measured width is divisible by the same power of
two."""

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
_FEW = 0.1  # share of the widths of an axis by which an evenly spaced one may differ
MEAN_TO_LIKELY = math.sqrt(2 / math.pi) / _LIKELY
"""Mean absolute error over half the width of the 95 % interval, of a normal error."""


class _Kernel(NamedTuple):
    """Length scales of the covariance, each in the unit of its coordinate.

    Infinite where the coordinate plays no part.
    """

    reach: float  # in octaves of the width
    slack: float = math.inf
    align: float = math.inf
    nugget: float = _NUGGETS[0]


class _Model(NamedTuple):
    """Universal kriging (Matheron 1969).

    A multilinear trend and a Gaussian process, both relative to a first fit of the trend.
    """

    groups: tuple[int, ...]  # of each axis; 1 where latency follows the width itself
    kernel: _Kernel
    scale: np.ndarray  # of the first fit: a coefficient each product of axes
    sizes: np.ndarray  # of the columns of the trend, relative to that fit
    inverse: np.ndarray  # of the kriging system
    weights: np.ndarray  # that inverse times the values
    deviation: float  # of the process, relative
    left_out: np.ndarray  # relative error at each knot when it is predicted from the others, of what was measured there
    surprise: np.ndarray  # the same in standard deviations of that prediction

    @property
    def extras(self) -> int:
        """How much it makes of a width beyond its size."""
        return (
            sum(group > 1 for group in self.groups)
            + math.isfinite(self.kernel.slack)
            + math.isfinite(self.kernel.align)
        )


class _Council(NamedTuple):
    """The models that are averaged, and how well such models predict knots that had no part in choosing them.

    NaN where the knots are too few to tell.
    """

    models: list[_Model]  # the best one first
    error: float  # mean relative error
    worst: float  # largest relative error, at the ends too
    likely: float  # standard deviations of a 95 % interval
    share: float  # of what the neighbours on a line span: as much of it is in a 95 % interval
    fall: float  # by how much the interval goes beyond that, relative


class Interpolation:
    """What a family of blocks costs at widths that were not measured.

    Attributes:
        error: mean relative error of predicting each measured block from the others, by a model chosen without it. On
            an evenly spaced grid, which does not tell what is between its widths, no less than the intervals there let
            expect. NaN where the blocks are too few to tell.
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
        self._levels = [np.unique(column) for column in self._knots.T]
        self._grid = 2 * len(self._us) > math.prod(
            map(len, self._levels)
        )  # most of its nodes were measured; a line is one
        models = _believable(self._knots, self._us)
        self._council = _elect(models, self._knots, self._us)
        self._plain = _elect([model for model in models if not model.extras], self._knots, self._us)
        self._judged = not math.isnan(self._council.error)
        self.error = max(self._council.error, self._between_even()) if self._judged else math.nan
        groups = dict(zip(self._open.tolist(), self._council.models[0].groups, strict=True))
        self.groups = tuple(groups.get(axis, 1) for axis in range(self._widths.shape[1]))

    def predict(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latency and how far off it may be.

        Args:
            widths: [points, axes].

        Returns:
            Microseconds [points], and half the width of their 95 % intervals, relative [points].
        """
        points = np.asarray(widths, dtype=float)[:, self._open]
        us, half = self._averaged(points, self._council)
        if not self._judged:  # how far blocks differ is all that is known
            return us, np.full(len(us), np.ptp(self._us) / self._us.min())
        aliased, unlike = self._aliased(points), self._unlike(points)
        plain = aliased.any(axis=1) | (unlike > 0)
        us[plain], half[plain] = self._averaged(points[plain], self._plain)
        new = self._new(points) if self._grid else aliased
        some = np.flatnonzero(new.any(axis=1))
        span = self._span(points[some], us[some], new[some])
        if len(self._levels) == 1:
            share, fall = (
                np.where(plain[some], getattr(self._plain, name), getattr(self._council, name))
                for name in ("share", "fall")
            )
            half[some] = np.where(aliased[some, 0], 1.0, share) * span + fall + _NOISE
        else:
            half[some] = np.maximum(half[some], span)
        return us, half + unlike

    def _averaged(self, points: np.ndarray, council: _Council) -> tuple[np.ndarray, np.ndarray]:
        """What models say in the mean, and half of the interval by their errors at knots that they leave out."""
        found = [self._predict(model, points) for model in council.models]
        us, deviation = (
            np.mean([us for us, _ in found], axis=0),
            np.median([deviation for _, deviation in found], axis=0),
        )
        # Models that do equally well on what is known but differ here leave it open which is right.
        apart = np.max([np.abs(other / us - 1) for other, _ in found], axis=0)
        return us, np.hypot(council.likely * deviation, apart) + _NOISE

    def _new(self, points: np.ndarray) -> np.ndarray:
        """On which axes no block of that width was measured [points, axes]."""
        known = [np.isin(column, levels) for column, levels in zip(points.T, self._levels, strict=True)]
        return ~np.stack(known, axis=1) if known else np.zeros(points.shape, dtype=bool)

    def _aliased(self, points: np.ndarray) -> np.ndarray:
        """On which axes a width is new and the measured widths are whole gaps apart [points, axes].

        All but a few measured widths are such, and the new one is not a whole gap from them.
        """
        found = self._new(points)
        for axis, (widths, levels) in enumerate(zip(points.T, self._levels, strict=True)):
            gap, _ = _spacing(levels)
            found[:, axis] &= ((widths[:, None] - levels) % gap == 0).sum(axis=1) < max(2.0, _FEW * len(levels))
        return found

    def _unlike(self, points: np.ndarray) -> np.ndarray:
        """By how much intervals are wider where a width's power of two is that of at most one knot on an axis.

        0 elsewhere [points].

        Where knots are of three kinds or more, the worst error at one of them says how far off other kinds may be.
        """
        asked, known = _alignments(points), _alignments(self._knots)
        counts = (asked[:, None] == known[None]).sum(axis=1)
        kinds = [sum((column == kind).sum() > 1 for kind in np.unique(column)) for column in known.T]
        wider = [UNSEEN if number < 3 else min(UNSEEN, self._council.worst + _NOISE) for number in kinds]
        return np.where(counts < 2, wider, 0.0).max(axis=1, initial=0.0)

    def _span(self, points: np.ndarray, us: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Error of predicting the latency of the neighbouring measured width [points].

        On the axes on which a width is new.
        """
        reach = np.zeros(len(points))
        for sides in itertools.product((False, True), repeat=new.shape[1]):
            corners = points.copy()
            for axis, (levels, above) in enumerate(zip(self._levels, sides, strict=True)):
                at = np.searchsorted(levels, points[:, axis]) - (not above)
                corners[:, axis] = np.where(new[:, axis], levels[np.clip(at, 0, len(levels) - 1)], points[:, axis])
            there, half = self._averaged(corners, self._council)
            reach = np.maximum(reach, np.maximum(there * (1 + half) / us - 1, 1 - there * (1 - half) / us))
        return reach

    def _between_even(self) -> float:
        """Mean relative error that the intervals in the middle between evenly spaced widths let expect.

        0 for an uneven grid.
        """
        if not self._grid or all(_spacing(levels)[1] <= 1 - _FEW for levels in self._levels):
            return 0.0
        points = list(itertools.product(*map(_middles, self._levels)))
        widths = np.tile(self._widths[:1], (len(points), 1))
        widths[:, self._open] = points
        return float(np.minimum(self.predict(widths)[1], 1.0).mean()) * MEAN_TO_LIKELY

    def _predict(self, model: _Model, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at, knots = _coordinates(points, model.groups), _coordinates(self._knots, model.groups)
        trend = _products(at.rounded)
        unit = _unit(trend, model.scale, self._us)
        column = np.hstack([_alike(at, knots, model.kernel), trend / model.sizes / unit[:, None]])
        us = column @ model.weights * unit
        nugget = model.kernel.nugget
        variance = np.maximum(1 + nugget - ((column @ model.inverse) * column).sum(axis=1), nugget)
        return np.maximum(us, self._us.min() / 2), model.deviation * np.sqrt(variance)


def _elect(models: list[_Model], knots: np.ndarray, us: np.ndarray) -> _Council:
    """The best models, judged at knots that had no part in choosing them.

    Of those that are as good as exact the simplest.
    """
    if not len(models[0].left_out):
        return _Council(models[:1], *[math.nan] * 5)
    # Knots beyond all others on an axis are not judged: nobody asks what lies beyond.
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
    beside = _beside(knots[:, 0], us, predicted) if knots.shape[1] == 1 else (math.nan, math.nan)
    unseen, surprise = errors[chosen], surprises[chosen][judged]
    return _Council(best, float(unseen[judged].mean()), float(unseen.max()), max(_LIKELY, likely(surprise)), *beside)


def _beside(widths: np.ndarray, us: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """How far off predictions of the knots of a line are.

    Which share of what their neighbours span, and how far beyond, relative.

    The share is doubled: a model in the middle of its neighbours is off by half of a step between them, one beside a
    neighbour by all of it.
    """
    order = np.argsort(widths)
    us, there = us[order], predicted[order][1:-1]
    span = np.maximum(np.maximum(us[:-2], us[2:]) - there, there - np.minimum(us[:-2], us[2:]))
    error = np.abs(us[1:-1] - there)
    return min(2 * likely(error / np.maximum(span, 1e-12)), 1.0), likely(np.maximum(error - span, 0.0) / there)


def likely(errors: np.ndarray) -> float:
    """What a further error is below with a probability of 95 %.

    More than the largest where they are too few to tell.
    """
    errors, enough = np.sort(errors), _COVERAGE / (1 - _COVERAGE)
    rank = min(math.ceil((len(errors) + 1) * _COVERAGE), len(errors))
    return float(errors[rank - 1]) * max(1.0, math.sqrt(enough / len(errors)))


def _spacing(levels: np.ndarray) -> tuple[float, float]:
    """The gap that most neighbouring widths have, the smallest of several, and the share of them that have it."""
    gaps, counts = np.unique(np.diff(levels), return_counts=True)
    return float(gaps[counts.argmax()]), counts.max() / counts.sum()


def _middles(levels: np.ndarray) -> np.ndarray:
    """A width near the middle between each two, a multiple of what divides all of them where there is one."""
    gaps, unit = np.diff(levels), float(np.gcd.reduce(levels.astype(int)))
    return levels[:-1] + np.where(gaps > unit, unit * np.maximum(gaps // (2 * unit), 1), gaps / 2)


def _believable(knots: np.ndarray, us: np.ndarray) -> list[_Model]:
    """The models that predict the knots best from one another."""
    axes = knots.shape[1]
    if len(us) < 2**axes + 3:  # too few to leave one out
        return [_fit(knots, us, (1,) * axes, _Kernel(4.0))._replace(left_out=np.empty(0))]
    if len(us) <= _TRIED:
        return _ranked(knots, us)
    some = np.random.RandomState(0).permutation(len(us))[:_TRIED]
    best = _ranked(knots[some], us[some])
    tried = [*[model for model in best if model.extras][: 2 * _COUNCIL], *[model for model in best if not model.extras]]
    return [_fit(knots, us, model.groups, model.kernel) for model in tried]


def _ranked(knots: np.ndarray, us: np.ndarray) -> list[_Model]:
    """All models of these knots, the best one first."""
    # Where no group holds two of the measured widths, nothing tells a staircase from a line.
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
    first = [_fit(knots, us, groups, _Kernel(_REACHES[1])) for groups in itertools.product(*options)]
    finalists = dict.fromkeys(
        [(1,) * knots.shape[1], *(model.groups for model in sorted(first, key=_rank)[:_FINALISTS])]
    )
    models = [
        _fit(knots, us, groups, _Kernel(*scales))
        for groups in finalists
        for scales in itertools.product(
            _REACHES, _SLACKS if max(groups, default=1) > 1 else (math.inf,), _ALIGNS, _NUGGETS
        )
    ]
    return sorted(models, key=_rank)


def _fit(knots: np.ndarray, us: np.ndarray, groups: tuple[int, ...], kernel: _Kernel) -> _Model:
    at = _coordinates(knots, groups)
    trend = _products(at.rounded)
    scale = np.linalg.lstsq(trend / us[:, None], np.ones(len(us)), rcond=None)[0]
    unit = _unit(trend, scale, us)
    count, terms = trend.shape
    sizes = np.linalg.norm(
        trend / unit[:, None], axis=0
    )  # else the ridge would hold back the terms whose columns are small
    system = np.zeros((count + terms, count + terms))
    system[:count, :count] = _alike(at, at, kernel) + kernel.nugget * np.eye(count)
    system[:count, count:] = trend / sizes / unit[:, None]
    system[count:, :count] = system[:count, count:].T
    system[count:, count:] = -1e-9 * np.eye(terms)  # where the knots do not tell terms of the trend apart
    inverse = np.linalg.inv(system)
    weights = inverse[:, :count] @ (us / unit)
    precision = np.maximum(np.diag(inverse)[:count], 1e-12)
    residual = weights[:count] / precision  # leave one out in closed form (Dubrule 1983)
    deviation = float(np.sqrt(np.mean(residual**2 * precision)))
    surprise = residual * np.sqrt(precision) / max(deviation, 1e-12)
    return _Model(groups, kernel, scale, sizes, inverse, weights, deviation, residual * unit / us, surprise)


def _unit(trend: np.ndarray, scale: np.ndarray, us: np.ndarray) -> np.ndarray:
    """The fitted trend, never near 0: what latencies are relative to."""
    return np.clip(trend @ scale, us.min() / 2, None)


def _rank(model: _Model) -> tuple[float, int, float]:
    """The better model first; of equals the simpler one."""
    error = float(np.mean(np.abs(model.left_out)))
    return max(error, _NOISE), model.extras, error


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
