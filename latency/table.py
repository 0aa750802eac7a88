"""Latency tables: one file a device, runtime, protocol and precision; a line a measurement, appended as measured.

Format `latency-table/3`: lines of JSON. The first is a `TableHeader`, each other one a `Row`; the latest row of a key counts. The last
field of every line, `check`, is a hash of the line before's `check` and of this line: a line that was edited, deleted or moved is found.
A last line without its newline was being written when the writer died: it is dropped.
"""

import fcntl
import gc
import hashlib
import itertools
import math
import os
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from latency import predict
from latency.block import BlockSpec
from latency.decoding import decode_json
from latency.device import Device, Runtime, first_difference, require_equal
from latency.errors import CoverageError, FileError, FingerprintMismatch, LatencyError, TableError, one_line
from latency.files import raised_as, read_bytes, require_regular
from latency.interpolate import Interpolation
from latency.measure import percentile
from latency.predict import Predictor, Sums
from latency.protocol import Protocol
from latency.units import Unit
from latency.values import OptionalSha256, SampleUs, Sha256, TimeUs, Width, require_date

# latency-table/1: until 0.1. Protocols have no `settle_runs`, rows no percentiles and no reason; replays are not told from the original.
# latency-table/2: `Row.p90_us`, `p99_us` and `reason`, `TableHeader.recording`.
# latency-table/3: rows that are `transferred`, `TableHeader.like`.
_SCHEMA = "latency-table/3"


def _magic(schema: str) -> bytes:
    """What a table of a schema begins with."""
    return f'{{"schema":"{schema}",'.encode()


_OLD = ("latency-table/1", "latency-table/2")
MAX_TABLE_BYTES = 4 * 2**30
"""Size of the largest table that is read: a row of a thousand samples takes 8 KiB."""

FEWEST = 3
"""Blocks beyond the corners of a family that it takes to judge interpolation between them."""

_ROUNDED_US = 0.001
"""What rounding to a nanosecond may add to a time."""

_NETWORK_KEY = re.compile(r"network-[0-9a-f]{16}")
_CHECK = re.compile(rb',"check":"([0-9a-f]{12})"}$')


class Recording(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table that another one was replayed from.

    Attributes:
        sha256: of the recorded table's file.
        created: day on which it was measured, ISO 8601.
        protocol: how it was timed.
    """

    sha256: Sha256
    created: str
    protocol: Protocol

    def __post_init__(self) -> None:
        require_date("created", self.created)


class OldTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table of another device that blocks were transferred from.

    Attributes:
        sha256: of its file.
        device: where it was measured.
        runtime: what ran there.
        precision: of its networks.
        origin: as of `TableHeader.origin`.
    """

    sha256: Sha256
    device: Device
    runtime: Runtime
    precision: Literal["fp32", "fp16"]
    origin: str = ""

    @property
    def words(self) -> str:
        """In short: which table that is."""
        threads = self.device.threads
        how = f"{self.runtime.name}, {self.precision}" + f", {threads} thread{'s' * (threads > 1)}" * (self.device.kind == "cpu")
        said = f"{self.device.name} ({how}; sha256 {self.sha256[:16]})"
        return f"{said}, which is not measured: {self.origin}" if self.origin else said


class TableHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all rows of a table have in common. Two tables may be pooled only where all but `created` and `bundle_sha256` is equal.

    Attributes:
        schema: the file format.
        device: where it was measured.
        runtime: what ran there.
        protocol: how it was timed.
        precision: of the networks.
        batch: images an inference.
        lowering: version of the code that wrote the ONNX.
        settings: what else decided which code ran, by name, such as TensorRT's `optimization_level`.
        space: the search space that the blocks are of; "" for none.
        created: day of the first row, ISO 8601; of a replayed table the day of the recording.
        recording: what the table was replayed from; None for a table that was measured.
        bundle_sha256: of the block bundle that was measured; "" where the blocks came from the space itself.
        like: tables of other devices, by which blocks are known that were not measured on this one.
    """

    schema: Literal["latency-table/3"] = _SCHEMA
    device: Device
    runtime: Runtime
    protocol: Protocol
    precision: Literal["fp32", "fp16"]
    batch: Width = 1
    lowering: str
    settings: dict[str, str] = {}
    space: str
    created: str
    recording: Recording | None = None
    bundle_sha256: OptionalSha256 = ""
    like: tuple[OldTable, ...] = ()

    def __post_init__(self) -> None:
        require_date("created", self.created)

    @property
    def origin(self) -> str:
        """In what the table is not a measurement of its device, in words; "" where it is one."""
        words = []
        if self.runtime.name == "simulated":
            words.append("simulated: no such device exists")
        if (recording := self.recording) is not None:
            words.append(f"replayed from a recording of {recording.created}, sha256 {recording.sha256[:16]}")
            if difference := first_difference(recording.protocol, self.protocol):
                field, was, now = difference
                words.append(f"resampled by another protocol: {field} is {now!r}, it was recorded with {was!r}")
        return "; ".join(words)

    def require_origin(self, wanted: str, *, what: str, mend: str) -> None:
        """Check that the table is of an origin, "" for one that was measured; `what` begins and `mend` ends the error's message.

        Raises:
            FingerprintMismatch: it is of another.
        """
        if self.origin != wanted:
            raise FingerprintMismatch(what, "origin", self.origin or "measured", wanted or "measured", mend)

    def command(self, source: str, out: str) -> str:
        """The command that measures a space or a block bundle as this table was measured.

        Args:
            source: what to measure, with its own flags.
            out: table to write or to go on with.
        """
        backend, protocol = self.runtime.name, self.protocol.name
        if self.settings and backend == "simulated":
            backend += ":" + ",".join(f"{name}={value}" for name, value in self.settings.items())
        threads = f" --threads {self.device.threads}" if self.device.threads > 1 else ""
        timing = f" --protocol {protocol}" if protocol != "default" else ""
        batch = f" --batch {self.batch}" if self.batch > 1 and not source.endswith(".blocks.zip") else ""
        return f"lathe profile {source} --backend {shlex.quote(backend)}{threads}{timing}{batch} --out {shlex.quote(out)}"

    def measuring(self, out: str) -> str:
        """The command that measures more of the table's own space."""
        return self.command(shlex.quote(self.space) if self.space else "SPACE", out)

    def made_like(self, other: "TableHeader") -> "TableHeader":
        """This one with what may differ between tables that are pooled as the other has it."""
        return msgspec.structs.replace(self, created=other.created, bundle_sha256=other.bundle_sha256)


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement, or why there is none.

    Attributes:
        kind: `overhead` is an empty network, `sentinel` a block measured again and again to see drift, `network` a whole network.
        key: what was measured; of a block its `BlockSpec.key`, of a sentinel `sentinel`.
        status: `ok`; `unstable`: measured, but not as surely as the protocol asks; `transferred`: predicted from tables of other devices
            (`TableHeader.like`) and some measured blocks; or what failed.
        samples_us: all samples; none where nothing was measured.
        median_us: their median, or the prediction; 0 where something failed.
        low_us: lower end of its interval.
        high_us: upper end.
        p90_us: the samples' 90th percentile; None where they are too few to state it (`latency.measure.percentile`).
        p99_us: their 99th; likewise.
        reason: why it is unstable; "" where it is not.
        error: the words of what failed, or in what a latency was not measured as the protocol asks.
        blocks: of a network the keys of its blocks, in order; of a sentinel the one key of what it measures.
        clocks: what was read of the device between windows of samples, by name with unit; `discarded_windows` were thrown away.
    """

    kind: Literal["block", "overhead", "sentinel", "network"]
    key: str
    status: Literal["ok", "unstable", "transferred", "build_failed", "run_failed"]
    samples_us: tuple[SampleUs, ...] = ()
    median_us: TimeUs = 0.0
    low_us: TimeUs = 0.0
    high_us: TimeUs = 0.0
    p90_us: SampleUs | None = None
    p99_us: SampleUs | None = None
    reason: str = ""
    error: str = ""
    blocks: tuple[str, ...] = ()
    clocks: dict[str, float] = {}

    @property
    def measured(self) -> bool:
        """Whether it was measured: `ok`, or `unstable` with an interval that says how much."""
        return self.status in ("ok", "unstable")

    @property
    def known(self) -> bool:
        """Whether there is a latency, measured or transferred."""
        return self.measured or self.status == "transferred"


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A latency in microseconds with its interval, and where it is from.

    Attributes:
        us: the latency.
        low_us: lower end of its interval.
        high_us: upper end.
        source: how it comes from its table.
        origin: what to know of that table: why it is not a measurement of its device (`TableHeader.origin`), and of a prediction which
            whole networks failed that should have judged it (`LatencyTable.unproved`), and whether blocks were transferred.
    """

    us: TimeUs
    low_us: TimeUs
    high_us: TimeUs
    source: Literal["measured", "interpolated", "transferred", "predicted"]
    origin: str = ""

    def remarks(self, unit: Unit) -> list[str]:
        """What a person should know of it: where its table comes from."""
        return [self.origin] if self.origin else []


class Surface:
    """Latency of one family of blocks over its widths, on a complete rectilinear grid.

    Attributes:
        family: of the blocks.
        axes: of each width's name the values on the grid, ascending, in the order of `BlockSpec.widths`.
        values_us: medians; one dimension an axis.
        low_us: lower ends of their intervals.
        high_us: upper ends.
    """

    def __init__(self, family: str, axes: Mapping[str, np.ndarray], values_us: np.ndarray, low_us: np.ndarray, high_us: np.ndarray) -> None:
        self.family, self.axes = family, dict(axes)
        self.values_us, self.low_us, self.high_us = values_us, low_us, high_us

    def interpolate(self, widths: Mapping[str, int | float]) -> Latency:
        """Interpolation along each axis, linear or in steps, with an interval that is honest on staircases.

        In steps a width costs what the next one up on the grid costs; that is chosen where it predicts grid values from the others better
        than a straight line does.

        Between two measured widths latency may step anywhere, so the interval spans all corners of the cell with their own intervals.
        Where latency is not monotone that is not enough: it also spans the largest relative error that predicting a corner from its two
        neighbours along an axis makes (leave one out).

        Args:
            widths: a value for each axis, inside of the grid.

        Raises:
            CoverageError: an axis is missing or unknown, or its range is left.
        """
        if set(widths) != set(self.axes):
            raise CoverageError(f"{self.family} is measured over the widths {', '.join(self.axes)}, asked for {', '.join(widths)}")
        position: list[tuple[int, float]] = []  # of each axis the grid value below, and how far it is from there to the next
        for name, axis in self.axes.items():
            width = widths[name]
            if not axis[0] <= width <= axis[-1]:
                raise CoverageError(f"{self.family}: {name}={width} is outside of the measured {axis[0]}..{axis[-1]}")
            i = int(np.searchsorted(axis, width, side="right")) - 1
            position.append((i, float((width - axis[i]) / (axis[i + 1] - axis[i])) if width > axis[i] else 0.0))
        shares = [float(t > 0) if step else t for (_, t), step in zip(position, self.steps, strict=True)]

        corners = list(itertools.product(*([i, i + 1] if t else [i] for i, t in position)))
        us = sum(
            math.prod((t if index > i else 1 - t) for index, (i, _), t in zip(corner, position, shares, strict=True))
            * float(self.values_us[corner])
            for corner in corners
        )
        between = [axis for axis, (_, t) in enumerate(position) if t]
        error_us = us * max((self._leave_one_out(corner, axis) for corner in corners for axis in between), default=0.0)
        low_us = min(us - error_us, *(float(self.low_us[corner]) for corner in corners))
        high_us = max(us + error_us, *(float(self.high_us[corner]) for corner in corners))
        return Latency(us=us, low_us=low_us, high_us=high_us, source="interpolated")

    @cached_property
    def steps(self) -> tuple[bool, ...]:
        """Of each axis whether latency rises in steps: leaving grid values out, the next one up predicts them as well as a line does.

        A step halfway between grid values costs both guesses the same, so a tie is a staircase.
        """
        found = []
        for axis, widths in enumerate(self.axes.values()):
            lines = np.moveaxis(self.values_us, axis, 0)
            if len(widths) < 4:
                found.append(False)
                continue
            share = ((widths[1:-1] - widths[:-2]) / (widths[2:] - widths[:-2])).reshape(-1, *[1] * (lines.ndim - 1))
            linear = np.abs((lines[:-2] * (1 - share) + lines[2:] * share) / lines[1:-1] - 1).mean()
            found.append(bool(np.abs(lines[2:] / lines[1:-1] - 1).mean() <= 1.05 * linear))
        return tuple(found)

    def _leave_one_out(self, node: tuple[int, ...], axis: int) -> float:
        """Relative error of predicting a grid value from its two neighbours along an axis; 0 at an end, where it has but one."""
        widths = list(self.axes.values())[axis]
        line, i = self.values_us[(*node[:axis], slice(None), *node[axis + 1 :])], node[axis]
        if i in (0, len(widths) - 1):
            return 0.0
        return float(abs(np.interp(widths[i], widths[[i - 1, i + 1]], line[[i - 1, i + 1]]) / line[i] - 1))


class LatencyTable:
    """A latency table in memory. Make it with `load`.

    Attributes:
        header: what its rows have in common.
        rows: the latest row of each key, in the order in which keys came first.
        history: every row of the file, superseded ones too.
        sha256: of the file's bytes.
        warnings: what a person should know about the file, such as a torn last line that was dropped.
        path: of the file; "" for none.
        old: the earlier schema that the file is of, which is read but not continued; "" where it is of the present one.
    """

    def __init__(
        self, header: TableHeader, rows: Sequence[Row], *, sha256: str = "", warnings: Sequence[str] = (), path: str = "", old: str = ""
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
        content = _read(data, path)
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
        self, *, device: Device | None = None, runtime: Runtime | None = None, precision: str | None = None, batch: int | None = None
    ) -> None:
        """Check that the table is of this device, runtime, precision and batch; None is not checked.

        Raises:
            FingerprintMismatch: it is not; names the field.
        """
        wanted = {"device": device, "runtime": runtime, "precision": precision, "batch": batch}
        header = msgspec.structs.replace(self.header, **{field: value for field, value in wanted.items() if value is not None})
        require_equal(self.header, header, what=f"table {self.path}", mend=f"measure another with `{header.measuring('TABLE')}`")

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
            CoverageError: nothing of it was measured, a point is outside of what was, or that is too little.
        """
        try:
            surface = self.surface(family)
        except CoverageError:
            surface = None
        # Over one width every grid is complete, holes or not: only with several does a complete grid tell that it was meant as one.
        if surface is not None and (sum(len(axis) > 1 for axis in surface.axes.values()) != 1 or surface.values_us.size < FEWEST + 2):
            return [surface.interpolate(dict(zip(surface.axes, point, strict=True))) for point in points]
        return self._scattered(family, points)

    def _scattered(self, family: str, points: Sequence[tuple[int, ...]]) -> list[Latency]:
        """Interpolate in a family whose grid is not complete.

        Raises:
            CoverageError: nothing of it was measured, a point is outside of what was, or that is too little.
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
        if len(rows) < 2 ** int((low < high).sum()) + FEWEST:
            raise CoverageError(f"the {len(rows)} measured blocks of {family} are too few to tell what is between them")
        if family not in self._interpolations:
            self._interpolations[family] = Interpolation(knots, np.array([row.median_us for _, row in rows]))
        found = zip(*self._interpolations[family].predict(np.array(points)), strict=True)
        # Interpolation takes its knots as measured; between transferred ones it is no surer than they are.
        below, above = (
            max((abs(getattr(row, end) / row.median_us - 1) for _, row in rows if not row.measured), default=0.0)
            for end in ("low_us", "high_us")
        )
        ends = ((float(us), float(us * max(0.0, 1 - half - below)), float(us * (1 + half + above))) for us, half in found)
        return [Latency(us=us, low_us=low_us, high_us=high_us, source="interpolated") for us, low_us, high_us in ends]

    def measured_network(self, blocks: Sequence[BlockSpec]) -> Latency | None:
        """Latency of a whole network as it was measured, given its blocks in order; None where it was not."""
        keys = tuple(block.key for block in blocks)
        row = next((row for row in self._by_key.values() if row.kind == "network" and row.blocks == keys and row.measured), None)
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

    def combine(self, found: Sequence[Latency], blocks: Sequence[BlockSpec]) -> Latency:
        """Latency of a network, given its blocks in order and their latencies as `lookup` found them."""
        return self._predicted(found, self.predictor.network(Sums.of(blocks, [latency.us for latency in found])))

    def share(self, block: BlockSpec, *, first: bool) -> Latency:
        """What one block adds to the latency of a network; those of all blocks add up to what `predict` says.

        Raises:
            CoverageError: the block is not covered.
        """
        found = self.lookup(block)
        us = self.predictor.added_us(block.op, found.us, block.input_kelements)
        return self._predicted([found], us + first * self.predictor.network_us)

    def _predicted(self, found: Sequence[Latency], us: float) -> Latency:
        # The predictor's error was seen on measured blocks; what interpolation and transfer add to it comes on top.
        unsure = [block for block in found if block.source != "measured"]
        low_us = us * (1 - self.predictor.half_width) - self.predictor.scale * sum(block.us - block.low_us for block in unsure)
        high_us = us * (1 + self.predictor.half_width) + self.predictor.scale * sum(block.high_us - block.us for block in unsure)
        transferred = any(block.source == "transferred" for block in unsure)
        origin = "; ".join(filter(None, (self.origin, self.unproved, self.transferred if transferred else "")))
        return Latency(us=us, low_us=low_us, high_us=high_us, source="predicted", origin=origin)

    @cached_property
    def unproved(self) -> str:
        """Which whole networks could not be measured, and whether enough are left to judge predictions by; "" where none failed."""
        networks = [row for row in self._by_key.values() if row.kind == "network"]
        failed = [row for row in networks if not row.measured]
        if not failed:
            return ""
        words = f"{len(failed)} of {len(networks)} whole networks failed ({failed[0].status}: {one_line(failed[0].error, 80)})"
        if self.predictor.networks < predict.FEWEST:
            words += f", so the error of predictions is assumed: {self.predictor.half_width:.0%}"
        return words

    @cached_property
    def transferred(self) -> str:
        """How many blocks are known from tables of other devices, and which; "" for none."""
        blocks = [row for row in self._by_key.values() if row.kind == "block"]
        count = sum(row.status == "transferred" for row in blocks)
        old = " and ".join(old.words for old in self.header.like)
        return f"{count} of {len(blocks)} blocks are transferred from {old}" if count else ""

    @cached_property
    def predictor(self) -> Predictor:
        """Fitted on those network rows that are `ok` and whose blocks are covered."""
        found, measured_us = [], []
        for row in self._by_key.values():
            if row.kind == "network" and row.status == "ok":
                blocks = [BlockSpec.parse(key) for key in row.blocks]
                try:
                    found.append(Sums.of(blocks, [self.lookup(block).us for block in blocks]))
                except CoverageError:
                    continue
                measured_us.append(row.median_us)
        overhead_us = next((row.median_us for row in self._by_key.values() if row.kind == "overhead" and row.measured), 0.0)
        return predict.fit(found, measured_us, overhead_us)

    def surface(self, family: str, axes: Mapping[str, Sequence[int]] | None = None) -> Surface:
        """Latency of a family of blocks over its widths.

        Args:
            family: a `BlockSpec.family`.
            axes: the widths of the grid by name, points of which that were not measured are interpolated; None for all that were
                measured, and these only.

        Raises:
            CoverageError: nothing of this family was measured, or points of the grid are missing and cannot be interpolated; names them.
        """
        if axes is None and family in self._surfaces:
            return self._surfaces[family]
        rows = self._families.get(family, [])
        if not rows:
            raise CoverageError(f"no block of {family} was measured")
        names = [name for name, _ in rows[0][0].widths]
        points = {tuple(width for _, width in spec.widths): (row.median_us, row.low_us, row.high_us) for spec, row in rows}
        grid = [sorted(axes[name] if axes else {point[i] for point in points}) for i, name in enumerate(names)]
        if missing := [point for point in itertools.product(*grid) if point not in points]:
            named = "; ".join(",".join(f"{name}={width}" for name, width in zip(names, point, strict=True)) for point in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lacks = f"the grid of {family} lacks {named}{more}"
            if axes is None:
                raise CoverageError(lacks)
            try:
                found = self._between_rows(family, missing)
            except CoverageError as error:
                raise self._lacks(f"{lacks} ({error})") from error
            points |= {point: (latency.us, latency.low_us, latency.high_us) for point, latency in zip(missing, found, strict=True)}
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


class TableWriter:
    """Appends rows to a table, one process at a time. A context manager.

    A new table is created; one of the same fingerprint is continued, after a torn last line is cut off.

    Attributes:
        rows: the latest row of each key that was there when the writer opened, by key.
        history: every row that was there then, superseded ones too.
        torn: number of the torn line that was cut off; 0 for none.

    Raises:
        TableError: another process writes it, or it was edited or damaged.
        FingerprintMismatch: what is there was measured otherwise; names the field.
    """

    def __init__(self, path: str | os.PathLike[str], header: TableHeader) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)  # a pipe is not waited for
        except OSError as error:
            raise TableError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            with raised_as(TableError, "choose another --out"):
                require_regular(path, os.fstat(self._file), MAX_TABLE_BYTES)
            self._lock()
            with open(self._file, "rb", closefd=False) as file:
                content = _read(file.read(), path)
            if content.header is not None:
                if content.old:
                    raise TableError(
                        f"{path} is of the earlier format {content.old}: it can be read, but rows of {_SCHEMA} cannot be appended: "
                        f"profile to another file"
                    )
                found = content.header.made_like(header)
                what, mend = f"table {path}", "profile to another file, or as this one was profiled"
                found.require_origin(header.origin, what=what, mend=mend)
                require_equal(found, header, what=what, mend=mend)
            os.ftruncate(self._file, content.size)
            self._size, self._check = content.size, content.check
            self.torn, self.history, self.rows = content.torn, content.rows, {row.key: row for row in content.rows}
            if content.header is None:
                self._write(header)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, *rows: Row) -> None:
        """Append rows; they are on the disk when this returns.

        Raises:
            TableError: the disk is full or fails. The table is left as it was before.
        """
        for row in rows:
            wrong = _inconsistent(row)
            assert not wrong, f"row {row.key}, {wrong[0]}: {wrong[1]}"
        self._write(*rows)

    def _write(self, *values: TableHeader | Row) -> None:
        lines, check = [], self._check
        for value in values:
            line, check = _seal(value, check)
            lines.append(line)
        data = b"".join(lines)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise TableError(f"{self.path}: cannot be written: {error.strerror}; what was measured before is kept") from error
        self._size, self._check = self._size + len(data), check

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TableError(f"{self.path}: {_holder(self._file)} is writing this table: wait for it, or end it") from error

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._file)

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


_Line = TypeVar("_Line", TableHeader, Row)


class _Content(NamedTuple):
    header: TableHeader | None  # None where not even that was written whole
    rows: list[Row]
    size: int  # bytes up to the end of the last whole line
    check: str  # of the last whole line
    torn: int  # number of the torn line, 0 for none
    old: str = ""  # the schema that it was upgraded from


def _read(data: bytes, path: str | os.PathLike[str]) -> _Content:
    size = data.rfind(b"\n") + 1
    lines, torn = data[:size].split(b"\n")[:-1], data[size:]
    magic = _magic(_SCHEMA)
    start = data[: len(magic)]
    old = next((schema for schema in _OLD if start == _magic(schema)), "")
    if not old and not magic.startswith(start):
        begin, found = magic.decode(), start.decode(errors="backslashreplace")
        raise TableError(f"{path}, line 1, field schema: a latency table begins with {begin!r}, this file with {found!r}")
    if not lines:
        return _Content(None, [], 0, "", 1 if torn else 0)
    header, check = _unseal(lines[0], TableHeader, "", f"{path}, line 1", old=old)
    rows, known = [], set[str]()
    collects = gc.isenabled()
    gc.disable()  # a million samples hold no cycle, and looking for one takes half of the time
    try:
        for number, line in enumerate(lines[1:], 2):
            row, check = _unseal(line, Row, check, f"{path}, line {number}")
            row = _row_from_1(row) if old == _OLD[0] else row
            if wrong := _inconsistent(row) or _misnamed(row, known):
                raise TableError(f"{path}, line {number}, field {wrong[0]}: {wrong[1]}")
            rows.append(row)
    finally:
        if collects:
            gc.enable()
    return _Content(header, rows, size, check, len(lines) + 1 if torn else 0, old)


def _row_from_1(row: Row) -> Row:
    """A row of `latency-table/1` with the percentiles that its samples state."""
    return msgspec.structs.replace(row, p90_us=percentile(row.samples_us, 0.90), p99_us=percentile(row.samples_us, 0.99))


def _header_from(old: str, body: bytes) -> bytes:
    """A header of an earlier schema as one of this: what is new has its default, which is what was done then."""
    return body.replace(_magic(old), _magic(_SCHEMA), 1)


def _seal(value: TableHeader | Row, previous: str) -> tuple[bytes, str]:
    """A line with its check, and that check."""
    body = msgspec.json.encode(value)
    check = _hash(previous, body)
    return body[:-1] + f',"check":"{check}"}}\n'.encode(), check


def _unseal(line: bytes, kind: type[_Line], previous: str, where: str, *, old: str = "") -> tuple[_Line, str]:
    """A line's content and its check; the inverse of `_seal`."""
    match = _CHECK.search(line)
    body = line[: match.start()] + b"}" if match else line
    try:
        value = decode_json(_header_from(old, body) if old else body, kind, where)
    except FileError as error:
        problem = error.problem.removeprefix("is damaged: ")
        raise TableError(f"{where}, field {_field(problem, body)}: {problem}") from error
    check = _hash(previous, body)
    if match is None or match[1].decode() != check:
        wrong = _inconsistent(value) if isinstance(value, Row) else None
        field = wrong[0] if wrong else "check"
        raise TableError(
            f"{where}, field {field}: it does not fit the rest of this line and the line before: was one edited, deleted or moved?"
        )
    return value, check


def _hash(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + body).hexdigest()[:12]


def _inconsistent(row: Row) -> tuple[str, str] | None:
    """The field that contradicts the row's samples, and how; None where all follow from them."""
    if row.measured != bool(row.samples_us):
        return "status", f"it is {row.status}, with {len(row.samples_us)} samples"
    if row.status == "transferred":
        ordered = 0 < row.low_us <= row.median_us <= row.high_us
        return None if ordered else ("median_us", f"it is {row.median_us}, and must be in its interval, {row.low_us} to {row.high_us}")
    if not row.samples_us:
        field = next((name for name in ("median_us", "low_us", "high_us") if getattr(row, name)), None)
        return (field, "it must be 0 where nothing was measured") if field else None
    ordered = sorted(row.samples_us)
    median_us = round(statistics.median(ordered), 3)
    if row.median_us != median_us:
        return "median_us", f"it is {row.median_us}, of the samples {median_us}"
    if not ordered[0] - _ROUNDED_US <= row.low_us <= median_us:
        return "low_us", f"it is {row.low_us}, and must be from the least sample to the median, {median_us}"
    if not median_us <= row.high_us <= ordered[-1] + _ROUNDED_US:
        return "high_us", f"it is {row.high_us}, and must be from the median, {median_us}, to the largest sample"
    for name, share in (("p90_us", 0.90), ("p99_us", 0.99)):
        if getattr(row, name) != (wanted := percentile(ordered, share)):
            return name, f"it is {getattr(row, name)}, of the samples {wanted}"
    return None


def _misnamed(row: Row, known: set[str]) -> tuple[str, str] | None:
    """`key` or `blocks` where that does not fit the kind of row, and how.

    Args:
        row: what was read.
        known: keys of blocks that were found to be ones; new ones are added.
    """
    keys = {"block": (row.key,), "network": row.blocks}.get(row.kind, ())
    for key in keys:
        if key not in known:
            try:
                BlockSpec.parse(key)
            except LatencyError as error:
                return "key" if row.kind == "block" else "blocks", str(error)
            known.add(key)
    if row.status == "transferred" and row.kind != "block":
        return "status", f"it is transferred, and must be measured for a row of the kind {row.kind}"
    if row.kind in ("overhead", "sentinel") and row.key != row.kind:
        return "key", f"it is {row.key!r}, and must be {row.kind!r} for a row of this kind"
    if row.kind == "network" and not _NETWORK_KEY.fullmatch(row.key):
        return "key", f"it is {row.key!r}, and must be network- and 16 hexadecimal digits for a network"
    return None


def _field(text: str, body: bytes) -> str:
    """The field that a decoding error is about."""
    if names := re.findall(r"at `\$\.([\w.]+)", text) + re.findall(r"field `(\w+)`", text):
        return ".".join(names)
    position = re.search(r"byte (\d+)", text)  # malformed JSON: the last name before that byte
    names = re.findall(rb'"(\w+)":', body[: int(position[1])] if position else body)
    return names[-1].decode() if names else "?"


def _holder(file: int) -> str:
    """Who holds the lock of a file, as far as the system tells."""
    inode = os.fstat(file).st_ino
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        locks = ""
    match = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\S+:{inode}\s", locks)
    return f"process {match[1]}" if match else "another process"
