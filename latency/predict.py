"""From latencies of blocks to the latency of a network, with its error."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from latency.block import BlockSpec

FEWEST = 6
"""Measured networks that it takes to fit a predictor: three parameters, and something left to judge them by."""
_FOLDS = 10
_UNFITTED_HALF_WIDTH = 0.25  # plain sums are off by 9 % on average; nothing was measured that says it is less here

Scalar = TypeVar("Scalar")  # a float or a tensor: the arithmetic is the same


class Term(NamedTuple):
    """Part of a network: a block, or several of which at most one runs. Floats, or tensors that carry gradients.

    Attributes:
        cost: of the part where it runs, times the probability that it does.
        present: that probability; a layer that is skipped has no boundary.
        kelements: thousands of elements in its input, times that probability.
    """

    cost: Any
    present: Any
    kelements: Any


def block_term(block: BlockSpec, us: float) -> Term:
    """A block that runs, and takes so long."""
    return Term(us, 1.0, block.input_kelements)


def features(terms: Iterable[Term]) -> tuple[Any, Any, Any]:
    """Arguments of `Predictor.apply` for a network of these parts, in order; where presence is uncertain, their expectation.

    There is a boundary before each part that runs but the first one that does. Parts are present independently of one another.
    """
    cost = boundaries = kelements = earlier = 0.0
    for term in terms:  # `earlier`: the probability that any part before it runs
        cost = cost + term.cost
        boundaries = boundaries + earlier * term.present
        kelements = kelements + earlier * term.kelements
        earlier = earlier + (1 - earlier) * term.present
    return cost, boundaries, kelements


class Predictor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """latency = scale * sum of blocks - boundary_us * boundaries - boundary_us_per_kelement * elements that cross boundaries / 1000.

    A block measured by itself pays for a launch, and converts its input and its output to and from the runtime's own layout. Inside of a
    network that happens once, so what each boundary between two blocks saves is taken off the sum.

    Attributes:
        scale: of the sum of blocks.
        boundary_us: saved at each boundary.
        boundary_us_per_kelement: saved at each boundary for 1000 elements that cross it.
        mean_absolute_error: relative, of networks that the fit has not seen; NaN where no network was measured.
        bias: their mean signed relative error, predicted against measured; NaN likewise.
        kendall_tau: how well their order is predicted, from -1 to 1 (Kendall 1938, tau-a); NaN for fewer than two.
        half_width: 95 % of predictions are within so much of the truth, relative.
        networks: how many measured networks the above comes from.
    """

    scale: float
    boundary_us: float
    boundary_us_per_kelement: float
    mean_absolute_error: float
    bias: float
    kendall_tau: float = float("nan")
    half_width: float
    networks: int

    def apply(self, sum_block_us: Scalar, boundaries: Scalar | float, boundary_kelements: Scalar | float) -> Scalar:
        """Latency of a network in microseconds, of its `features`; plain arithmetic, for floats, arrays and tensors alike.

        Args:
            sum_block_us: sum of its blocks' latencies.
            boundaries: number of blocks less one.
            boundary_kelements: thousands of elements in the inputs of all blocks but the first.
        """
        return self.scale * sum_block_us - self.boundary_us * boundaries - self.boundary_us_per_kelement * boundary_kelements  # pyright: ignore


def fit(features: Sequence[tuple[float, float, float]], measured_us: Sequence[float], overhead_us: float) -> Predictor:
    """Fit a predictor by relative least squares, and judge it by cross-validation.

    Args:
        features: of each network the arguments of `Predictor.apply`.
        measured_us: latency of each network.
        overhead_us: latency of an empty network: what a boundary saves where there are too few networks to fit.
    """
    x, y = np.asarray(features, dtype=float).reshape(-1, 3), np.asarray(measured_us, dtype=float)
    n = len(y)
    if n < FEWEST:
        guess = np.array([1.0, -overhead_us, 0.0])
        return _predictor(guess, x @ guess, y, at_least=_UNFITTED_HALF_WIDTH)
    fold = np.arange(n) % min(n, _FOLDS)
    unseen = np.empty(n)
    for test in (fold == k for k in range(fold.max() + 1)):
        unseen[test] = x[test] @ _solve(x[~test], y[~test])
    return _predictor(_solve(x, y), unseen, y, at_least=0.0)


def _solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients with the least sum of squared relative errors. Columns are scaled first: the rank must not depend on units."""
    a = x / y[:, None]
    norm = np.linalg.norm(a, axis=0)
    norm[norm == 0] = 1
    return np.linalg.lstsq(a / norm, np.ones(len(y)), rcond=1e-6)[0] / norm


def _predictor(coefficients: np.ndarray, predicted_us: np.ndarray, measured_us: np.ndarray, at_least: float) -> Predictor:
    scale, boundary_us, boundary_us_per_kelement = (float(value) for value in coefficients * [1, -1, -1])
    errors = predicted_us / measured_us - 1
    sizes = np.abs(errors)
    return Predictor(
        scale=scale,
        boundary_us=boundary_us,
        boundary_us_per_kelement=boundary_us_per_kelement,
        mean_absolute_error=float(sizes.mean()) if len(errors) else float("nan"),
        bias=float(errors.mean()) if len(errors) else float("nan"),
        kendall_tau=kendall_tau(predicted_us, measured_us),
        # The sample quantile that never interpolates downwards: with fewer than 20 networks it is the largest error.
        half_width=max([at_least, *([float(np.quantile(sizes, 0.95, method="higher"))] if len(errors) else [])]),
        networks=len(errors),
    )


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Pairs that two series order alike less those that they order otherwise, as a share of all pairs; NaN for fewer than two values."""
    pairs = len(a) * (len(a) - 1) / 2
    agree = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agree.sum() / 2 / pairs) if pairs else float("nan")
