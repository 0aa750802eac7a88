"""Latency tables in memory: look up a block, predict a network."""

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from latency import predict
from latency.block import BlockSpec
from latency.device import Device, Runtime, require_equal
from latency.errors import CoverageError, TableError, one_line
from latency.files import raised_as, read_bytes
from latency.interpolate import Interpolation
from latency.predict import Predictor, Sums
from latency.rows import Latency, Row, TableHeader
from latency.surface import Surface
from latency.tablefile import MAX_TABLE_BYTES, read_lines

MIN_INNER_BLOCKS = 3
"""Blocks of a family, beyond its corners, that it takes to judge interpolation."""


class LatencyTable:
    """A latency table in memory. Make it with `load`.

    Attributes:
        header: what its rows have in common.
        rows: the latest row of each key, in the order in which keys came first.
        history: every row of the file, superseded ones included.
        sha256: of the file's bytes.
        warnings: remarks on the file for the user, such as a torn last line that was dropped.
        path: of the file; "" if there is none.
        old: the file's schema if it is an earlier one, which is read but not continued; "" otherwise.
    """

    def __init__(
        self,
        header: TableHeader,
        rows: Sequence[Row],
        *,
        sha256: str = "",
        warnings: Sequence[str] = (),
        path: str = "",
        old: str = "",
    ) -> None:
        self.header, self.sha256, self.warnings, self.path, self.old = header, sha256, tuple(warnings), path, old
        self.history, self._by_key = tuple(rows), {row.key: row for row in rows}
        self._surfaces: dict[str, Surface] = {}
        self._interpolations: dict[str, Interpolation] = {}
        self._between: dict[str, Latency] = {}  # what was interpolated, by key

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LatencyTable":
        """Read a table.

        Raises:
            TableError: there is none, or it was edited or damaged; names line and field.
        """
        with raised_as(TableError, f"measure a table with `lathe profile SPACE --out {path}`"):
            data = read_bytes(path, limit=MAX_TABLE_BYTES)
        content = read_lines(data, path)
        if content.header is None:
            raise TableError(f"{path}: nothing was measured yet: measure with `lathe profile SPACE --out {path}`")
        torn = f"{path}, line {content.torn}: the last line is torn and was dropped; profiling again measures it"
        warnings = [torn] if content.torn else []
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(content.header, content.rows, sha256=sha256, warnings=warnings, path=str(path), old=content.old)

    @cached_property
    def origin(self) -> str:
        """As of `TableHeader.origin`."""
        return self.header.origin

    @property
    def rows(self) -> list[Row]:
        """The latest row of each key."""
        return list(self._by_key.values())

    def require(
        self,
        *,
        device: Device | None = None,
        runtime: Runtime | None = None,
        precision: str | None = None,
        batch: int | None = None,
    ) -> None:
        """Require a device, runtime, precision and batch; None is not checked.

        Raises:
            FingerprintMismatch: it is not; names the field.
        """
        wanted = {"device": device, "runtime": runtime, "precision": precision, "batch": batch}
        header = msgspec.structs.replace(
            self.header, **{field: value for field, value in wanted.items() if value is not None}
        )
        require_equal(
            self.header, header, what=f"table {self.path}", fix=f"measure another with `{header.measuring('TABLE')}`"
        )

    def lookup(self, spec: BlockSpec) -> Latency:
        """Latency of a block: measured, transferred, or interpolated between blocks of its family.

        Raises:
            CoverageError: it can be neither.
        """
        row = self._by_key.get(spec.key)
        if row is not None and row.known:
            return self._latency(row)
        if row is not None:
            raise self._lacks(f"block {spec.key} is {row.status} in {self.path or 'the table'} ({row.error})")
        if spec.key not in self._between:
            try:
                self._between[spec.key] = self._between_rows(spec.family, [tuple(width for _, width in spec.widths)])[0]
            except CoverageError as error:
                raise self._lacks(f"block {spec.key} is not in {self.path or 'the table'} ({error})") from error
        return self._between[spec.key]

    def _lacks(self, reason: str) -> CoverageError:
        return CoverageError(reason, f"measure it with `{self.header.measuring(self.path or 'TABLE')}`")

    def _between_rows(self, family: str, points: Sequence[tuple[int, ...]]) -> list[Latency]:
        """Interpolate in a family, whether its grid is complete or not.

        Raises:
            CoverageError: no block of the family was measured, a point is out of range, or the blocks are too few.
        """
        try:
            surface = self.surface(family)
        except CoverageError:
            surface = None
        # Over one width any set of points is a complete grid; only over several does completeness show that a grid was
        # intended.
        if surface is not None and (
            sum(len(axis) > 1 for axis in surface.axes.values()) != 1 or surface.values_us.size < MIN_INNER_BLOCKS + 2
        ):
            return [surface.interpolate(dict(zip(surface.axes, point, strict=True))) for point in points]
        return self._scattered(family, points)

    def _scattered(self, family: str, points: Sequence[tuple[int, ...]]) -> list[Latency]:
        """Interpolate in a family whose grid is not complete.

        Raises:
            CoverageError: no block of the family was measured, a point is out of range, or the blocks are too few.
        """
        rows = self._families.get(family, [])
        if not rows:
            raise CoverageError(f"no block of {family} was measured")
        names = [name for name, _ in rows[0][0].widths]
        knots = np.array([[width for _, width in spec.widths] for spec, _ in rows])
        low, high = knots.min(axis=0), knots.max(axis=0)
        for point in points:
            for name, width, first, last in zip(names, point, low, high, strict=True):
                if not first <= width <= last:
                    raise CoverageError(f"{family}: {name}={width} is outside of the measured {first}..{last}")
        if len(rows) < 2 ** int((low < high).sum()) + MIN_INNER_BLOCKS:
            raise CoverageError(f"the {len(rows)} measured blocks of {family} are too few to tell what is between them")
        if family not in self._interpolations:
            self._interpolations[family] = Interpolation(knots, np.array([row.median_us for _, row in rows]))
        predictions = zip(*self._interpolations[family].predict(np.array(points)), strict=True)
        # Interpolation takes its knots as measured; between transferred ones its interval is at least as wide as
        # theirs.
        below, above = (
            max((abs(getattr(row, end) / row.median_us - 1) for _, row in rows if not row.measured), default=0.0)
            for end in ("low_us", "high_us")
        )
        ends = (
            (float(us), float(us * max(0.0, 1 - half - below)), float(us * (1 + half + above)))
            for us, half in predictions
        )
        return [Latency(us=us, low_us=low_us, high_us=high_us, source="interpolated") for us, low_us, high_us in ends]

    def measured_network(self, blocks: Sequence[BlockSpec]) -> Latency | None:
        """Measured latency of a whole network, given its blocks in order; None if it was not measured."""
        keys = tuple(block.key for block in blocks)
        row = next(
            (row for row in self._by_key.values() if row.kind == "network" and row.blocks == keys and row.measured),
            None,
        )
        return row and self._latency(row)

    def _latency(self, row: Row) -> Latency:
        source: Literal["measured", "transferred"] = "measured" if row.measured else "transferred"
        return Latency(us=row.median_us, low_us=row.low_us, high_us=row.high_us, source=source, origin=self.origin)

    def predict(self, blocks: Sequence[BlockSpec]) -> Latency:
        """Latency of a network, given its blocks in order.

        Raises:
            CoverageError: a block is not covered.
        """
        return self.combine([self.lookup(block) for block in blocks], blocks)

    def combine(self, latencies: Sequence[Latency], blocks: Sequence[BlockSpec]) -> Latency:
        """Latency of a network, given its blocks in order and their latencies as `lookup` found them."""
        return self._predicted(
            latencies, self.predictor.network(Sums.of(blocks, [latency.us for latency in latencies]))
        )

    def share(self, block: BlockSpec, *, first: bool) -> Latency:
        """A block's share of a network's latency; the shares of all blocks add up to `predict`.

        Raises:
            CoverageError: the block is not covered.
        """
        latency = self.lookup(block)
        us = self.predictor.added_us(block.op, latency.us, block.input_kelements)
        return self._predicted([latency], us + first * self.predictor.network_us)

    def _predicted(self, latencies: Sequence[Latency], us: float) -> Latency:
        # The predictor's error is that of measured blocks; interpolation and transfer add theirs.
        unsure = [block for block in latencies if block.source != "measured"]
        low_us = us * (1 - self.predictor.half_width) - self.predictor.scale * sum(
            block.us - block.low_us for block in unsure
        )
        high_us = us * (1 + self.predictor.half_width) + self.predictor.scale * sum(
            block.high_us - block.us for block in unsure
        )
        transferred = any(block.source == "transferred" for block in unsure)
        origin = "; ".join(filter(None, (self.origin, self.unproved, self.transferred if transferred else "")))
        return Latency(us=us, low_us=low_us, high_us=high_us, source="predicted", origin=origin)

    @cached_property
    def unproved(self) -> str:
        """How many whole networks failed, and whether enough are left to judge predictions; "" if none failed."""
        networks = [row for row in self._by_key.values() if row.kind == "network"]
        failed = [row for row in networks if not row.measured]
        if not failed:
            return ""
        words = (
            f"{len(failed)} of {len(networks)} whole networks failed ({failed[0].status}: "
            f"{one_line(failed[0].error, 80)})"
        )
        if self.predictor.networks < predict.MIN_NETWORKS:
            words += f", so the error of predictions is assumed: {self.predictor.half_width:.0%}"
        return words

    @cached_property
    def transferred(self) -> str:
        """How many blocks are transferred, and from which tables; "" if none are."""
        blocks = [row for row in self._by_key.values() if row.kind == "block"]
        count = sum(row.status == "transferred" for row in blocks)
        old = " and ".join(old.words for old in self.header.like)
        return f"{count} of {len(blocks)} blocks are transferred from {old}" if count else ""

    @cached_property
    def predictor(self) -> Predictor:
        """Fitted on those network rows that are `ok` and whose blocks are covered."""
        sums: list[Sums] = []
        measured_us: list[float] = []
        for row in self._by_key.values():
            if row.kind == "network" and row.status == "ok":
                blocks = [BlockSpec.parse(key) for key in row.blocks]
                try:
                    sums.append(Sums.of(blocks, [self.lookup(block).us for block in blocks]))
                except CoverageError:
                    continue
                measured_us.append(row.median_us)
        overhead_us = next(
            (row.median_us for row in self._by_key.values() if row.kind == "overhead" and row.measured), 0.0
        )
        return predict.fit(sums, measured_us, overhead_us)

    def surface(self, family: str, axes: Mapping[str, Sequence[int]] | None = None) -> Surface:
        """Latency of a family of blocks over its widths.

        Args:
            family: a `BlockSpec.family`.
            axes: widths of the grid by name; points that were not measured are interpolated. None for exactly the
                measured ones.

        Raises:
            CoverageError: no block of the family was measured, or missing points of the grid cannot be interpolated;
                names them.
        """
        if axes is None and family in self._surfaces:
            return self._surfaces[family]
        rows = self._families.get(family, [])
        if not rows:
            raise CoverageError(f"no block of {family} was measured")
        names = [name for name, _ in rows[0][0].widths]
        points = {
            tuple(width for _, width in spec.widths): (row.median_us, row.low_us, row.high_us) for spec, row in rows
        }
        grid = [sorted(axes[name] if axes else {point[i] for point in points}) for i, name in enumerate(names)]
        if missing := [point for point in itertools.product(*grid) if point not in points]:
            named = "; ".join(
                ",".join(f"{name}={width}" for name, width in zip(names, point, strict=True)) for point in missing[:5]
            )
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lacks = f"the grid of {family} lacks {named}{more}"
            if axes is None:
                raise CoverageError(lacks)
            try:
                latencies = self._between_rows(family, missing)
            except CoverageError as error:
                raise self._lacks(f"{lacks} ({error})") from error
            points |= {
                point: (latency.us, latency.low_us, latency.high_us)
                for point, latency in zip(missing, latencies, strict=True)
            }
        nodes = np.array([points[point] for point in itertools.product(*grid)])
        values = nodes.T.reshape(3, *map(len, grid))
        surface = Surface(family, dict(zip(names, map(np.array, grid), strict=True)), *values)
        if axes is None:
            self._surfaces[family] = surface
        return surface

    @cached_property
    def _families(self) -> dict[str, list[tuple[BlockSpec, Row]]]:
        families: dict[str, list[tuple[BlockSpec, Row]]] = {}
        for row in self._by_key.values():
            if row.kind == "block" and row.known:
                spec = BlockSpec.parse(row.key)
                families.setdefault(spec.family, []).append((spec, row))
        return families
