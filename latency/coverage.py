"""Measure some blocks, the least certain ones first, until interpolation predicts held-out blocks well enough.

Every decision follows from the rows measured so far, in the order in which they were requested. After an interruption
the same call repeats the same decisions, finds their rows in the table, and continues.

One block in twenty, chosen by a hash of its key, is held out: it is measured and used to judge the interpolation
between the others. The key alone decides, so the table does not mark these rows; `prove` repeats the judgement on any
table.
"""

import hashlib
import itertools
import math
import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from latency.block import BlockSpec
from latency.errors import LatencyError, TableError
from latency.interpolate import MEAN_TO_LIKELY, Interpolation
from latency.lowered import OVERHEAD
from latency.profile import Event, Measured, Resumed, Workload
from latency.rows import Row
from latency.table import MIN_INNER_BLOCKS, LatencyTable

_HELD_OUT = 20  # one block in 20 is held out
_COARSE = 0.08  # share of a family in the first, coarse grid
_ROUNDS = 8  # approximate number of rounds in which the other blocks are chosen
_MOST = 3  # at most one block in 3 is measured


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well interpolation between the other blocks predicts held-out blocks.

    Attributes:
        held_out: number of held-out blocks.
        mean_error: mean relative absolute error; NaN if no block is held out.
        largest_error: largest relative absolute error; NaN likewise.
        inside: share of the held-out blocks whose measured and predicted intervals overlap.
    """

    held_out: int
    mean_error: float
    largest_error: float
    inside: float

    @property
    def words(self) -> str:
        """A short description of the errors."""
        if not self.held_out:
            return "with none held out to judge it"
        off = (
            f"{self.mean_error:.2%} off on average at {self.held_out} held-out ones (largest {self.largest_error:.1%})"
        )
        return f"{off}, {self.inside:.0%} of them in their intervals"


class Judged(NamedTuple):
    """A held-out row and its prediction in microseconds."""

    row: Row
    us: float
    low_us: float
    high_us: float


@dataclass(frozen=True)
class Covered:
    """A round is complete: `measured` of `blocks` blocks are measured.

    Attributes:
        measured: number of blocks requested so far.
        blocks: number of blocks of the whole space.
        expected_error: mean relative error expected of interpolation at the blocks that are not measured.
        proof: errors at the held-out blocks.
        done: whether this was the last round.
        enough: whether both errors are within the requested one; if not, the last round reaches the maximum number of
            measured blocks.
    """

    measured: int
    blocks: int
    expected_error: float
    proof: Proof
    done: bool
    enough: bool


def profile_adaptively(
    workloads: Sequence[Workload],
    out: str | os.PathLike[str],
    measure: Callable[[Sequence[Workload]], Iterator[Event]],
    *,
    error: float = 0.02,
) -> Iterator[Event | Covered]:
    """Measure overhead and networks, and at most a third of the blocks, or as many as interpolation needs at least.

    Args:
        workloads: workloads to cover.
        out: path of the table.
        measure: function that profiles workloads into that table.
        error: stop when the mean relative error, expected and at the held-out blocks, is at most this.

    Raises:
        LatencyError: `error` is not between 0 and 1; also whatever `measure` raises.
    """
    if not 0 < error < 1:
        raise LatencyError(f"--coverage-error must be between 0 and 1, found {error}: give 0.02 for 2 %")
    blocks = {work.key: work for work in workloads if work.kind == "block"}
    others = [work for work in workloads if work.kind != "block"]
    plan = _CoveragePlan([BlockSpec.parse(key) for key in blocks], error)
    total = plan.most + len({work.key for work in others}) + 1
    rounds = Rounds(out, measure, total)
    yield from rounds.resumed(workloads)
    requested: list[str] = []
    round_ = plan.first_round()
    while round_:
        requested += round_
        if rounds.has_new(round_):
            yield from rounds.measure([blocks[key] for key in requested])
        rows = rows_of(out)
        covered, round_ = plan.next_round({key: rows[key] for key in requested if key in rows})
        yield covered
    yield from rounds.measure([*(blocks[key] for key in requested), *others])


class Rounds:
    """Measures into one table in several rounds that look like one to the user."""

    def __init__(
        self, out: str | os.PathLike[str], measure: Callable[[Sequence[Workload]], Iterator[Event]], total: int
    ) -> None:
        """Prepare the rounds.

        Args:
            out: path of the table.
            measure: function that profiles workloads into that table.
            total: number of workloads that all rounds together measure.
        """
        self._out, self._measure, self._total = out, measure, total
        self._measured = {key for key, row in rows_of(out).items() if row.status == "ok"}
        self._attempted: set[str] = set()

    def resumed(self, workloads: Iterable[Workload]) -> Iterator[Resumed]:
        """Yield the number of workloads that an earlier call measured, if any."""
        if measured := self._measured & {OVERHEAD, *(work.key for work in workloads)}:
            yield Resumed(len(measured), self._total)

    def has_new(self, keys: Iterable[str]) -> bool:
        """Return whether this is the first round or some keys are neither measured nor attempted."""
        return not self._attempted or any(key not in self._attempted and key not in self._measured for key in keys)

    def measure(self, works: Sequence[Workload]) -> Iterator[Event]:
        """Measure the workloads that are not measured yet.

        Args:
            works: workloads of this round and, for the sentinel's sake, of those before. Rows that are `ok` are not
                measured again; a workload that failed in this call is retried by the next call, not by this one.
        """
        rows = rows_of(self._out)
        failed = {key for key in self._attempted if key not in rows or rows[key].status != "ok"}
        for event in self._measure([work for work in works if work.key not in failed]):
            if isinstance(event, Measured):
                yield replace(event, total=max(self._total, event.done))
            elif not isinstance(event, Resumed):
                yield event
        self._attempted.update(work.key for work in works)


def prove(table: LatencyTable) -> Proof:
    """Predict the held-out blocks of any table, even a complete one, from the other blocks."""
    specs = {row.key: BlockSpec.parse(row.key) for row in table.rows if row.kind == "block" and row.measured}
    rows = {row.key: row for row in table.rows}
    held = held_out(specs.values())
    proofs = [
        _predict_held_out(family, {key: rows[key] for key in family}, held)
        for family in _families(specs.values()).values()
    ]
    return proof_of([pair for pairs in proofs for pair in pairs])


def held_out(specs: Collection[BlockSpec]) -> set[str]:
    """Return the keys of the held-out blocks: one in twenty, none at a corner of its family, to avoid extrapolation."""
    keys: set[str] = set()
    for family in _families(specs).values():
        corners = _corners(family)
        keys |= {
            key
            for key in family
            if key not in corners and int(hashlib.sha256(key.encode()).hexdigest(), 16) % _HELD_OUT == 0
        }
    return keys


class _CoveragePlan:
    """Decides what to measure next, given the rows measured so far."""

    def __init__(self, specs: Sequence[BlockSpec], error: float) -> None:
        self._error, self._families, self._held, self._round = error, _families(specs), held_out(specs), 0
        self._blocks = len(specs)
        self._asked: set[str] = set()
        self._required = [key for family in self._families.values() for key in self._required_blocks(family)]
        self.most = max(self._blocks // _MOST, len({*self._required, *self._held}))

    def first_round(self) -> list[str]:
        """Return the blocks of the first round: those that each family needs, the held-out ones, and a coarse grid."""
        coarse = [key for family in self._families.values() for key in self._lattice(family)]
        return self._take([*self._required, *sorted(self._held), *coarse])

    def next_round(self, rows: dict[str, Row]) -> tuple[Covered, list[str]]:
        """Return the coverage reached and the blocks of the next round; none if it suffices or the limit is reached."""
        self._round += 1
        draw = random.Random(self._round)
        expected, scored, pairs = 0.0, list[tuple[float, str]](), list[Judged]()
        for family in self._families.values():
            unmeasured = [key for key in family if key not in self._asked]
            measured = {key: rows[key] for key in family if key in rows and rows[key].measured}
            pairs += _predict_held_out(family, measured, self._held)
            if not unmeasured:
                continue
            half = _uncertainty(family, measured, self._held, unmeasured)
            expected += float(half.sum()) * MEAN_TO_LIKELY
            # Weighted draws without replacement (Efraimidis and Spirakis 2006): neighbours of the least certain block
            # are as uncertain, and measuring all of them would tell little more.
            scored += [
                (math.log(max(draw.random(), 1e-300)) / max(share, 1e-6) ** 2, key)
                for share, key in zip(half, unmeasured, strict=True)
            ]
        open_count = len(scored)
        expected = expected / open_count if open_count else 0.0
        proof = proof_of(pairs)
        enough = expected <= self._error and (not proof.held_out or proof.mean_error <= self._error)
        count = max(1, math.ceil((self.most - len(self._asked)) / max(1, _ROUNDS - self._round)))
        chosen = [] if enough else [key for _, key in sorted(scored, reverse=True)[:count]]
        measured_so_far, round_ = len(self._asked), self._take(chosen)
        return Covered(measured_so_far, self._blocks, expected, proof, not round_, enough), round_

    def _take(self, keys: Iterable[str]) -> list[str]:
        taken = [key for key in dict.fromkeys(keys) if key not in self._asked][: self.most - len(self._asked)]
        self._asked.update(taken)
        return taken

    def _required_blocks(self, family: dict[str, BlockSpec]) -> list[str]:
        """Return the fewest blocks that make a family interpolable: its corners, and some to judge the errors by."""
        return list(dict.fromkeys([*sorted(_corners(family)), *self._lattice(family), *family]))[: _min_blocks(family)]

    def _lattice(self, family: dict[str, BlockSpec]) -> list[str]:
        """Return blocks that fill a family evenly and hit every remainder of its widths (Roberts 2018, R-sequence)."""
        axes = [
            sorted({spec.widths[i][1] for spec in family.values()})
            for i in range(len(next(iter(family.values())).widths))
        ]
        count = max(_min_blocks(family), math.ceil(_COARSE * len(family)))
        root = 2.0
        for _ in range(30):
            root = (1 + root) ** (1 / (len(axes) + 1))
        by_widths = {tuple(width for _, width in spec.widths): key for key, spec in family.items()}
        lattice: dict[str, None] = {}
        for number in range(1, 20 * count):
            point = tuple(axis[int((0.5 + number / root ** (i + 1)) % 1 * len(axis))] for i, axis in enumerate(axes))
            if (key := by_widths.get(point)) is not None and key not in self._held:
                lattice[key] = None
            if len(lattice) == count:
                break
        return list(lattice)


def _families(specs: Iterable[BlockSpec]) -> dict[str, dict[str, BlockSpec]]:
    families: dict[str, dict[str, BlockSpec]] = {}
    for spec in specs:
        families.setdefault(spec.family, {})[spec.key] = spec
    return families


def _corners(family: dict[str, BlockSpec]) -> set[str]:
    """Return the keys of blocks whose widths are each the smallest or the largest of the family."""
    ends = [
        (min(axis), max(axis)) for axis in zip(*([w for _, w in spec.widths] for spec in family.values()), strict=True)
    ]
    corners = set(itertools.product(*ends))
    return {key for key, spec in family.items() if tuple(width for _, width in spec.widths) in corners}


def _min_blocks(family: dict[str, BlockSpec]) -> int:
    """Return the number of measured blocks that interpolation in a family needs."""
    axes = zip(*([width for _, width in spec.widths] for spec in family.values()), strict=True)
    return 2 ** sum(len(set(axis)) > 1 for axis in axes) + MIN_INNER_BLOCKS


def _points(specs: Iterable[BlockSpec]) -> np.ndarray:
    return np.array([[width for _, width in spec.widths] for spec in specs], dtype=float)


def _fit_family(family: dict[str, BlockSpec], measured: dict[str, Row], held: set[str]) -> Interpolation | None:
    knots = [key for key in measured if key not in held]
    if len(knots) < 2:
        return None
    return Interpolation(_points(family[key] for key in knots), np.array([measured[key].median_us for key in knots]))


def _predict_held_out(family: dict[str, BlockSpec], measured: dict[str, Row], held: set[str]) -> list[Judged]:
    """Return the held-out rows with their predictions from the others."""
    judges = [key for key in measured if key in held]
    fit = _fit_family(family, measured, held) if judges else None
    if fit is None:
        return []
    us, half = fit.predict(_points(family[key] for key in judges))
    predicted = np.stack([us, us * (1 - half), us * (1 + half)], axis=1).tolist()
    return [Judged(measured[key], *values) for key, values in zip(judges, predicted, strict=True)]


def _uncertainty(
    family: dict[str, BlockSpec], measured: dict[str, Row], held: set[str], unmeasured: Sequence[str]
) -> np.ndarray:
    fit = _fit_family(family, measured, held)
    return np.ones(len(unmeasured)) if fit is None else fit.predict(_points(family[key] for key in unmeasured))[1]


def proof_of(judged: Sequence[Judged]) -> Proof:
    """Return the errors of predicted rows."""
    if not judged:
        return Proof(held_out=0, mean_error=math.nan, largest_error=math.nan, inside=math.nan)
    errors = np.array([abs(pair.us / pair.row.median_us - 1) for pair in judged])
    inside = np.mean([pair.row.low_us <= pair.high_us and pair.row.high_us >= pair.low_us for pair in judged])
    return Proof(
        held_out=len(judged), mean_error=float(errors.mean()), largest_error=float(errors.max()), inside=float(inside)
    )


def rows_of(path: str | os.PathLike[str]) -> dict[str, Row]:
    """Return the latest row of each key of a table; none if there is no table yet."""
    if not Path(path).exists():
        return {}
    try:
        return {row.key: row for row in LatencyTable.load(path).rows}
    except TableError:
        return {}  # damaged or empty: the next writer reports it
