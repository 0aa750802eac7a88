"""Latency of blocks on a new device, from tables of old devices and a few blocks measured on the new one: the anchors.

The logarithm of the latency is a Gaussian process (Rasmussen and Williams 2006, chapters 2 and 5) over a block's
latency on the old devices and its features. The covariance is a sum of terms: linear in the logarithms of the old
latencies, for a power law; smooth in them, for its curvature; linear and smooth in the features, for behaviour that no
old device shows. Models with different shares of these terms and of noise are averaged by their evidence. Intervals are
calibrated by the errors of anchors that are predicted from the others (conformal prediction; Barber et al. 2021,
jackknife).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from latency.block import BlockSpec
from latency.interpolate import likely

MIN_ANCHORS = 5
"""Minimum number of anchors: fewer do not reveal the error of a prediction."""

_LEVEL = 4.0  # variance of the mean latency, like the others relative to the linear share of the old latencies
_SHARES = tuple(
    itertools.product((0.0, 0.1), (0.0, 0.03, 0.3), (0.0, 0.1))
)  # smooth in the old latencies; linear, smooth in the features
_NOISES = (1e-3, 1e-2, 5e-2)
_CHOOSING = (0.1, 0.1, 0.1), 2e-2  # shares and noise that anchors are chosen by, before anything is measured
_CANDIDATES = 500  # blocks that anchors are chosen from, and for
_IGNORED = 1e-3  # weight of models that are left out of the average


class Transferred(NamedTuple):
    """Predicted latency of every block, and the ends of its 95 % interval, in microseconds [blocks]."""

    us: np.ndarray
    low_us: np.ndarray
    high_us: np.ndarray


class _TransferModel(NamedTuple):
    shares: tuple[float, ...]
    inverse: np.ndarray  # of the anchors' covariance [anchors, anchors]
    weights: np.ndarray  # that times their log latency
    variance: float  # of the process
    noise: float
    evidence: float  # logarithm of the marginal likelihood


class Transfer:
    """Predicts latencies on a new device from tables of old ones."""

    def __init__(self, old_us: np.ndarray, features: np.ndarray) -> None:
        """Prepare the model.

        Args:
            old_us: positive latency on each old device in microseconds [blocks, devices].
            features: numbers that describe a block's computation [blocks, features].
        """
        self._old, self._features = _standardized(np.log(old_us)), _standardized(features)

    def order(self, groups: Sequence[object], keep: Sequence[int] = ()) -> Iterator[int]:
        """Yield blocks in the order of their value as anchors: each minimizes the variance left, given those before.

        The fastest and the slowest block come first, then one of each group, so that any prefix is a good choice.

        Args:
            groups: group of each block, such as its family.
            keep: indices of blocks to leave out.
        """
        size = self._old.sum(axis=1)
        shuffled = np.random.RandomState(0).permutation(len(size))
        shuffled = shuffled[~np.isin(shuffled, list(keep))]
        ends = [shuffled[size[shuffled].argmin()], shuffled[size[shuffled].argmax()]]
        one_each = {groups[i]: i for i in shuffled[::-1]}.values()
        blocks = np.array(list(dict.fromkeys([*ends, *one_each, *shuffled[:_CANDIDATES]])))
        shares, noise = _CHOOSING
        left = _weighted_sum(shares, self._covariances(blocks, blocks))
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        labels = np.array([numbers[groups[i]] for i in blocks])
        is_open, uncovered = np.ones(len(blocks), dtype=bool), np.ones(len(blocks), dtype=bool)
        for step in range(len(blocks)):
            gain = (left**2).sum(axis=0) / (np.diag(left) + noise)
            allowed = is_open & uncovered if (is_open & uncovered).any() else is_open
            at = step if step < len(set(ends)) else int(np.where(allowed, gain, -1.0).argmax())
            yield int(blocks[at])
            is_open[at] = False
            uncovered &= labels != labels[at]
            left = left - np.outer(left[:, at], left[at]) / (left[at, at] + noise)
        yield from np.setdiff1d(shuffled, blocks).tolist()

    def fit(self, anchors: Sequence[int], us: Sequence[float]) -> Transferred:
        """Predict every block, including the anchors.

        Args:
            anchors: indices of the measured blocks.
            us: what they take on the new device [anchors], above 0.
        """
        at, logs = np.asarray(anchors), np.log(np.asarray(us, dtype=float))
        level = logs.mean()
        near, far = self._covariances(at, at), self._covariances(np.arange(len(self._old)), at)
        models = [_fit_process(near, logs - level, shares, noise) for shares in _SHARES for noise in _NOISES]
        evidence = np.array([model.evidence for model in models])
        weights = np.exp(evidence - evidence.max())
        kept = [
            (weight, model) for weight, model in zip(weights / weights.sum(), models, strict=True) if weight > _IGNORED
        ]
        mean, deviation = _averaged(kept, [self._predict(model, far) for _, model in kept])
        without, spread = _averaged(kept, [_left_out(model, logs - level) for _, model in kept])
        half = likely(np.abs(logs - level - without) / spread) * deviation
        return Transferred(*np.exp(level + np.array([mean, mean - half, mean + half])))

    def _predict(self, model: _TransferModel, far: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and variance at every block."""
        column = _weighted_sum(model.shares, far)
        own = _weighted_sum(model.shares, self._variances())
        explained = ((column @ model.inverse) * column).sum(axis=1)
        return column @ model.weights, model.variance * np.maximum(own + model.noise - explained, model.noise)

    def _covariances(self, rows: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
        """Return the covariances: linear and smooth in the old latencies, then in the features [rows, columns]."""
        covariances: list[np.ndarray] = []
        for values in (self._old, self._features):
            a, b = values[rows], values[columns]
            linear = a @ b.T
            apart = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * linear
            covariances += [linear, np.exp(-apart / 2)]
        return covariances

    def _variances(self) -> list[np.ndarray]:
        """Return the same covariances of each block with itself [blocks]."""
        ones = np.ones(len(self._old))
        return [(self._old**2).sum(axis=1), ones, (self._features**2).sum(axis=1), ones]


def describe(specs: Sequence[BlockSpec]) -> np.ndarray:
    """Return features of blocks [blocks, features]: logarithms of sizes, and 0 or 1 for names."""
    rows: list[dict[str, float]] = []
    for spec in specs:
        row = {f"op {spec.op}": 1.0, "input": float(np.log(spec.input_elements)), "all widths": 0.0}
        for name, value in spec.attrs:
            row |= {f"{name} {value}": 1.0} if isinstance(value, str) else {name: float(np.log1p(abs(value)))}
        for name, width in spec.widths:
            row[f"width {name}"] = float(np.log(width))
            row["all widths"] += float(np.log(width))
        rows.append(row)
    names = sorted({name for row in rows for name in row})
    return np.array([[row.get(name, 0.0) for name in names] for row in rows])


def _standardized(values: np.ndarray) -> np.ndarray:
    """Return the columns with mean 0 and equal variances that add up to 1, without constant columns."""
    deviation = values.std(axis=0)
    varied = values[:, deviation > 1e-9]
    return (varied - varied.mean(axis=0)) / varied.std(axis=0) / max(1.0, varied.shape[1]) ** 0.5


def _weighted_sum(shares: Sequence[float], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the weighted sum of covariances; the one that is linear in the old latencies has weight 1."""
    return np.asarray(_LEVEL + sum(share * part for share, part in zip((1.0, *shares), parts, strict=True)))


def _fit_process(near: list[np.ndarray], logs: np.ndarray, shares: tuple[float, ...], noise: float) -> _TransferModel:
    count = len(logs)
    root = np.linalg.cholesky(_weighted_sum(shares, near) + noise * np.eye(count))
    half = np.linalg.inv(root)
    inverse = half.T @ half
    weights = inverse @ logs
    variance = max(float(logs @ weights) / count, 1e-12)
    return _TransferModel(
        shares, inverse, weights, variance, noise, -count / 2 * np.log(variance) - float(np.log(np.diag(root)).sum())
    )


def _left_out(model: _TransferModel, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predict each anchor from the others: mean and variance in closed form (Rasmussen and Williams 2006, Eq. 5.12)."""
    precision = np.diag(model.inverse)
    return logs - model.weights / precision, model.variance / precision


def _averaged(
    kept: list[tuple[float, _TransferModel]], predictions: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of a mixture of models."""
    shares = np.array([weight for weight, _ in kept])
    means, variances = np.array([mean for mean, _ in predictions]), np.array([variance for _, variance in predictions])
    mean = shares @ means / shares.sum()
    return mean, np.sqrt(shares @ (variances + (means - mean) ** 2) / shares.sum())
