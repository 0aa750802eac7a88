"""Predict the latency of a network from the latencies of its blocks, with its error."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from latency.block import BlockSpec

MIN_NETWORKS = 6
"""Minimum number of measured networks to fit a predictor: three coefficients, and some networks to judge them."""
_FOLDS = 10
_UNFITTED_HALF_WIDTH = 0.25  # plain sums are off by 9 % on average; no measurement shows that it is less here


Quantity: TypeAlias = Any
"""A float, an array or a tensor: torch is not imported here."""


class Sums(NamedTuple):
    """Sums over a network's blocks that a prediction needs.

    Attributes:
        us: sum of their latencies in microseconds.
        counts: number of blocks of each kind, by `BlockSpec.op`.
        kelements: thousands of elements in their inputs.
    """

    us: float
    counts: Mapping[str, int]
    kelements: float

    @classmethod
    def of(cls, blocks: Sequence[BlockSpec], us: Sequence[float]) -> "Sums":
        """Sum over blocks, given their latencies."""
        return cls(
            math.fsum(us), Counter(block.op for block in blocks), math.fsum(block.input_kelements for block in blocks)
        )


class Predictor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Network latency from block latencies.

    latency = network_us + sum over blocks of (scale * latency - saved_us of its kind - saved_us_per_kelement *
    kelements of its input).

    A block measured by itself pays for a launch, and converts its input and output from and to the runtime's own
    layout. Inside a network it does not; the saving depends on the kind of block: a convolution converts, a sum does
    not.

    Attributes:
        scale: factor on every block's latency.
        saved_us: saving of each kind of block, by `BlockSpec.op`; empty if too few networks were measured to
            distinguish kinds.
        saved_us_else: saving of any other kind.
        saved_us_per_kelement: saving per 1000 elements of a block's input.
        network_us: latency of a network beyond its blocks.
        mean_absolute_error: mean relative absolute error at networks unseen by the fit; NaN if no network was measured.
        bias: mean signed relative error, predicted against measured; NaN likewise.
        within_5: share of them that are predicted within 5 %; NaN likewise.
        within_10: share of them that are predicted within 10 %; NaN likewise.
        kendall_tau: rank correlation of predictions, from -1 to 1 (Kendall 1938, tau-a); NaN for fewer than two
            networks.
        half_width: relative half-width of the 95 % interval of predictions.
        networks: number of measured networks behind these numbers.
    """

    scale: float
    saved_us: dict[str, float]
    saved_us_else: float
    saved_us_per_kelement: float
    network_us: float
    mean_absolute_error: float
    bias: float
    within_5: float = float("nan")
    within_10: float = float("nan")
    kendall_tau: float = float("nan")
    half_width: float
    networks: int

    def added_us(self, op: str, us: Quantity, kelements: Quantity) -> Quantity:
        """Return what a block adds to the latency of a network.

        Args:
            op: kind of block.
            us: its latency by itself.
            kelements: thousands of elements in its input.
        """
        return self.scale * us - self.saved_us.get(op, self.saved_us_else) - self.saved_us_per_kelement * kelements

    def network(self, sums: Sums) -> float:
        """Predict the latency of a network in microseconds."""
        saved = math.fsum(count * self.saved_us.get(op, self.saved_us_else) for op, count in sums.counts.items())
        return self.network_us + self.scale * sums.us - saved - self.saved_us_per_kelement * sums.kelements


def fit(networks: Sequence[Sums], measured_us: Sequence[float], overhead_us: float) -> Predictor:
    """Fit a predictor by relative least squares, and judge it by cross-validation.

    Kinds of block are distinguished if there are twice as many networks as coefficients in every fold. Coefficients
    that the networks cannot separate, such as those of a stem and a head that every network has once, share their sum.

    Args:
        networks: sums of the measured networks.
        measured_us: latency of each in microseconds.
        overhead_us: latency of an empty network, which a block saves if there are too few networks to fit.
    """
    n, y = len(networks), np.asarray(measured_us, dtype=float)
    kinds = tuple(sorted({kind for sums in networks for kind in sums.counts}))
    kinds = kinds if 0.9 * n >= 2 * (len(kinds) + 3) else ()
    x = np.asarray([_columns(sums, kinds) for sums in networks], dtype=float)
    if n < MIN_NETWORKS:
        guess = np.array([1.0, overhead_us, 0.0])
        return _predictor(_coefficients(guess, kinds), x @ guess if n else y, y, at_least=_UNFITTED_HALF_WIDTH)
    fold = np.arange(n) % min(n, _FOLDS)
    unseen = np.empty(n)
    for test in (fold == k for k in range(fold.max() + 1)):
        unseen[test] = x[test] @ _solve(x[~test], y[~test])
    return _predictor(_coefficients(_solve(x, y), kinds), unseen, y, at_least=0.0)


def _columns(sums: Sums, kinds: Sequence[str]) -> list[float]:
    """Return the factor of each coefficient; without kinds, every block but the first saves the same."""
    if not kinds:
        return [sums.us, 1.0 - sum(sums.counts.values()), -sums.kelements]
    return [sums.us, *(-float(sums.counts.get(kind, 0)) for kind in kinds), -sums.kelements, 1.0]


def _coefficients(solution: np.ndarray, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a `Predictor` for a solution in the order of `_columns`."""
    if not kinds:
        scale, saved_us, per_kelement = map(float, solution)
        each, network_us = [], saved_us
    else:
        scale, *each, per_kelement, network_us = map(float, solution)
        saved_us = sum(each) / len(each)
    return {
        "scale": scale,
        "saved_us": dict(zip(kinds, each, strict=True)),
        "saved_us_else": saved_us,
        "saved_us_per_kelement": per_kelement,
        "network_us": network_us,
    }


def _solve(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimize the sum of squared relative errors. Columns are scaled first, as the rank must not depend on units."""
    a = x / y[:, None]
    norm: NDArray[np.float64] = np.linalg.norm(a, axis=0)
    norm[norm == 0] = 1
    return np.linalg.lstsq(a / norm, np.ones(len(y)), rcond=1e-6)[0] / norm


def _predictor(
    coefficients: Mapping[str, Any], predicted_us: np.ndarray, measured_us: np.ndarray, at_least: float
) -> Predictor:
    errors = predicted_us / measured_us - 1
    sizes = np.abs(errors)
    return Predictor(
        **coefficients,
        mean_absolute_error=float(sizes.mean()) if len(errors) else float("nan"),
        bias=float(errors.mean()) if len(errors) else float("nan"),
        within_5=float((sizes <= 0.05).mean()) if len(errors) else float("nan"),
        within_10=float((sizes <= 0.10).mean()) if len(errors) else float("nan"),
        kendall_tau=kendall_tau(predicted_us, measured_us),
        # The sample quantile without interpolation downwards: with fewer than 20 networks it is the largest error.
        half_width=max([at_least, *([float(np.quantile(sizes, 0.95, method="higher"))] if len(errors) else [])]),
        networks=len(errors),
    )


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of pairs that two series order alike minus that of the others; NaN for fewer than two values."""
    pairs = len(a) * (len(a) - 1) / 2
    agree = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agree.sum() / 2 / pairs) if pairs else float("nan")
