"""Latency between measured widths, from blocks measured anywhere: a grid need not be complete.

Devices compute channels in groups of 8 to 128, so latency over width is a staircase, and which one differs by device, operator and axis.
So several models are tried, and those are believed that predict each measured block best from all the others (leave one out): on each axis
latency may follow the width itself, or the width rounded up to whole groups, with or without a say of how much of the last group is used.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

_GROUPS = (16, 32, 64, 128)
_REACHES = (0.5, 1.5, 4.0)
_SLACKS = (math.inf, 1.0, 0.25)  # the same for the unused share of the last group; infinite: it plays no part
_NUGGETS = (1e-5, 1e-2)  # variance of noise, as a share of the variance of what the trend does not explain
_ALIKE = 1.5  # models whose error is within this factor of the best one's are as believable
_COUNCIL = 6  # so many of them are averaged at most
_NOISE = 1e-3  # relative errors below are as good as none, and no interval is narrower
_LIKELY = 1.96  # standard deviations of a 95 % interval


class _Model(NamedTuple):
    """Universal kriging (Matheron 1969): a multilinear trend and a Gaussian process, both relative to a first fit of the trend."""

    groups: tuple[int, ...]  # of each axis; 1 where latency follows the width itself
    reach: float
    slack: float
    nugget: float
    scale: np.ndarray  # of the first fit: a coefficient each product of axes
    inverse: np.ndarray  # of the kriging system
    weights: np.ndarray  # that inverse times the values
    deviation: float  # of the process, relative
    left_out: np.ndarray  # relative error at each knot when it is predicted from the others


class Interpolation:
    """What a family of blocks costs at widths that were not measured.

    Attributes:
        error: mean relative error of predicting each measured block from the others; NaN where there are too few to tell.
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
        models = self._fit_all()
        self._models = models[:1] + [model for model in models[1:_COUNCIL] if _error(model) <= _ALIKE * _error(models[0])]
        self.error = _error(self._models[0])
        self.groups = tuple(dict(zip(self._open.tolist(), self._models[0].groups, strict=True)).get(i, 1) for i in range(widths.shape[1]))

    def predict(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latency and how far off it may be.

        Args:
            widths: [points, axes].

        Returns:
            Microseconds [points], and half the width of their 95 % intervals, relative [points].
        """
        found = [self._predict(model, np.asarray(widths, dtype=float)[:, self._open]) for model in self._models]
        us, deviation = np.mean([us for us, _ in found], axis=0), np.mean([deviation for _, deviation in found], axis=0)
        if math.isnan(self.error):
            return us, np.full(len(us), self._models[0].deviation)
        # Models that do equally well on what is known but differ here leave it open who is right.
        apart = np.max([np.abs(other / us - 1) for other, _ in found], axis=0)
        return us, np.hypot(_LIKELY * deviation, apart) + _NOISE

    def _fit_all(self) -> list[_Model]:
        """All models, the best one first; of equals the one without groups."""
        axes = self._knots.shape[1]
        if len(self._us) < 2**axes + 3:  # too few to leave one out
            model = self._fit((1,) * axes, 4.0, math.inf, 1e-5)
            return [model._replace(left_out=np.array([math.nan]), deviation=float(np.ptp(self._us) / self._us.min()))]
        # Where no group holds two of the measured widths, nothing tells a staircase from a line.
        options = [
            (1, *(group for group in _GROUPS if len(np.unique(np.ceil(column / group))) < len(np.unique(column)) and column.max() > group))
            for column in self._knots.T
        ]
        models = [
            self._fit(groups, reach, slack, nugget)
            for groups in itertools.product(*options)
            for reach, slack, nugget in itertools.product(_REACHES, _SLACKS if max(groups, default=1) > 1 else (math.inf,), _NUGGETS)
        ]
        return sorted(models, key=lambda model: (max(_error(model), _NOISE), max(model.groups, default=1) > 1, _error(model)))

    def _fit(self, groups: tuple[int, ...], reach: float, slack: float, nugget: float) -> _Model:
        rounded, unused = _coordinates(self._knots, groups)
        trend = _products(rounded)
        scale = np.linalg.lstsq(trend / self._us[:, None], np.ones(len(self._us)), rcond=None)[0]
        unit = self._unit(trend, scale)
        count, terms = trend.shape
        system = np.zeros((count + terms, count + terms))
        system[:count, :count] = _alike(rounded, unused, rounded, unused, reach, slack) + nugget * np.eye(count)
        # Columns of one size: else the inverse loses what the narrow widths tell.
        system[:count, count:] = trend / rounded.max(axis=0, initial=1.0).prod() / unit[:, None]
        system[count:, :count] = system[:count, count:].T
        system[count:, count:] = -1e-9 * np.eye(terms)  # where the knots do not tell terms of the trend apart
        inverse = np.linalg.pinv(system, hermitian=True)
        weights = inverse[:, :count] @ (self._us / unit)
        precision = np.maximum(np.diag(inverse)[:count], 1e-12)
        residual = weights[:count] / precision  # leave one out in closed form (Dubrule 1983)
        deviation = float(np.sqrt(np.mean(residual**2 * precision)))
        return _Model(groups, reach, slack, nugget, scale, inverse, weights, deviation, residual * unit / self._us)

    def _predict(self, model: _Model, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rounded, unused = _coordinates(points, model.groups)
        trend = _products(rounded)
        unit = self._unit(trend, model.scale)
        at_knots = _coordinates(self._knots, model.groups)
        size = at_knots[0].max(axis=0, initial=1.0).prod()
        column = np.hstack([_alike(rounded, unused, *at_knots, model.reach, model.slack), trend / size / unit[:, None]])
        us = column @ model.weights * unit
        variance = np.maximum(1 + model.nugget - np.einsum("ij,jk,ik->i", column, model.inverse, column), model.nugget)
        return np.maximum(us, self._us.min() / 2), model.deviation * np.sqrt(variance)

    def _unit(self, trend: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.clip(trend @ scale, self._us.min() / 2, None)


def _error(model: _Model) -> float:
    return float(np.mean(np.abs(model.left_out)))


def _coordinates(widths: np.ndarray, groups: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Widths rounded up to whole groups, and the unused share of the last group."""
    sizes = np.array(groups, dtype=float)
    rounded = np.ceil(widths / sizes) * sizes if len(groups) else widths
    rounded = np.where(sizes == 1, widths, rounded)
    return rounded, (rounded - widths) / sizes


def _products(rounded: np.ndarray) -> np.ndarray:
    """The products of every subset of the axes: what a multilinear function is a sum of."""
    axes = range(rounded.shape[1])
    subsets = itertools.chain.from_iterable(itertools.combinations(axes, size) for size in range(len(axes) + 1))
    return np.stack([rounded[:, list(subset)].prod(axis=1) for subset in subsets], axis=1)


def _alike(
    rounded: np.ndarray, unused: np.ndarray, rounded_too: np.ndarray, unused_too: np.ndarray, reach: float, slack: float
) -> np.ndarray:
    """Covariance of the process between points: Gaussian in the logarithm of widths and in what is unused of the last group."""
    apart = ((np.log2(rounded)[:, None] - np.log2(rounded_too)[None]) ** 2).sum(axis=-1) / reach**2
    if math.isfinite(slack):
        apart = apart + ((unused[:, None] - unused_too[None]) ** 2).sum(axis=-1) / slack**2
    return np.exp(-apart / 2)
