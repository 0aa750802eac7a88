"""From latencies of blocks to the latency of a network, with its error."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from latency.block import BlockSpec

MIN_NETWORKS = 6
"""Measured networks that it takes to fit a predictor: three coefficients, and something left to judge them by."""
_FOLDS = 10
_UNFITTED_HALF_WIDTH = 0.25  # plain sums are off by 9 % on average; nothing was measured that says it is less here


class Sums(NamedTuple):
    """What a prediction takes of a network's blocks.

    Attributes:
        us: sum of their latencies.
        counts: how many there are of each kind, by `BlockSpec.op`.
        kelements: thousands of elements in their inputs.
    """

    us: float
    counts: Mapping[str, int]
    kelements: float

    @classmethod
    def of(cls, blocks: Sequence[BlockSpec], us: Sequence[float]) -> "Sums":
        """Of blocks and their latencies."""
        return cls(
            math.fsum(us), Counter(block.op for block in blocks), math.fsum(block.input_kelements for block in blocks)
        )


class Predictor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Latency of a network as a linear function of the latencies of its blocks.

    latency = network_us + sum over blocks of (scale * latency - saved_us of its kind - saved_us_per_kelement *
    kelements of its input).

    A block measured by itself pays for a launch, and converts its input and its output to and from the runtime's own
    layout. Inside of a network it does not, and what that saves depends on what kind of block it is: a convolution
    converts, a sum does not.

    Attributes:
        scale: of every block's latency.
        saved_us: of each kind of block, by `BlockSpec.op`; empty where too few networks were measured to tell kinds
            apart.
        saved_us_else: of every other kind.
        saved_us_per_kelement: of 1000 elements in a block's input.
        network_us: what a network takes beside its blocks.
        mean_absolute_error: relative, of networks that the fit has not seen; NaN where no network was measured.
        bias: their mean signed relative error, predicted against measured; NaN likewise.
        within_5: share of them that are predicted to 5 %; NaN likewise.
        within_10: to 10 %.
        kendall_tau: how well their order is predicted, from -1 to 1 (Kendall 1938, tau-a); NaN for fewer than two.
        half_width: 95 % of predictions are within so much of the truth, relative.
        networks: how many measured networks the above comes from.
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

    def added_us(self, op: str, us: Any, kelements: Any) -> Any:
        """What a block adds to the latency of a network; plain arithmetic, for floats, arrays and tensors alike.

        Args:
            op: kind of block.
            us: its latency by itself.
            kelements: thousands of elements in its input.
        """
        return self.scale * us - self.saved_us.get(op, self.saved_us_else) - self.saved_us_per_kelement * kelements

    def network(self, sums: Sums) -> float:
        """Latency of a network in microseconds."""
        saved = math.fsum(count * self.saved_us.get(op, self.saved_us_else) for op, count in sums.counts.items())
        return self.network_us + self.scale * sums.us - saved - self.saved_us_per_kelement * sums.kelements


def fit(networks: Sequence[Sums], measured_us: Sequence[float], overhead_us: float) -> Predictor:
    """Fit a predictor by relative least squares, and judge it by cross-validation.

    Kinds of block are told apart where networks are twice as many as the coefficients, in every fold. Coefficients that
    the networks do not tell apart, such as those of a stem and a head that every network has once, share what is known
    of their sum.

    Args:
        networks: measured ones.
        measured_us: latency of each.
        overhead_us: latency of an empty network: what a block saves where there are too few networks to fit.
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
    """What each coefficient is multiplied with; without kinds every block saves alike, but for the first."""
    if not kinds:
        return [sums.us, 1.0 - sum(sums.counts.values()), -sums.kelements]
    return [sums.us, *(-float(sums.counts.get(kind, 0)) for kind in kinds), -sums.kelements, 1.0]


def _coefficients(found: np.ndarray, kinds: Sequence[str]) -> dict[str, Any]:
    """As fields of a `Predictor`, in the order of `_columns`."""
    if not kinds:
        scale, saved_us, per_kelement = map(float, found)
        each, network_us = [], saved_us
    else:
        scale, *each, per_kelement, network_us = map(float, found)
        saved_us = sum(each) / len(each)
    return {
        "scale": scale,
        "saved_us": dict(zip(kinds, each, strict=True)),
        "saved_us_else": saved_us,
        "saved_us_per_kelement": per_kelement,
        "network_us": network_us,
    }


def _solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients with the least sum of squared relative errors.

    Columns are scaled first: the rank must not depend on units.
    """
    a = x / y[:, None]
    norm = np.linalg.norm(a, axis=0)
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
        # The sample quantile that never interpolates downwards: with fewer than 20 networks it is the largest error.
        half_width=max([at_least, *([float(np.quantile(sizes, 0.95, method="higher"))] if len(errors) else [])]),
        networks=len(errors),
    )


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Pairs that two series order alike less those that they order otherwise, as a share of all pairs.

    NaN for fewer than two values.
    """
    pairs = len(a) * (len(a) - 1) / 2
    agree = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(agree.sum() / 2 / pairs) if pairs else float("nan")
