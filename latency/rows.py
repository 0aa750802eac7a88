"""Lines of a latency table: the header, the rows, and the checks that each row is consistent."""

import re
import shlex
import statistics
from typing import Literal

import msgspec

from latency.block import BlockSpec
from latency.device import Device, Runtime, first_difference
from latency.errors import FingerprintMismatch, LatencyError
from latency.measure import percentile
from latency.protocol import Protocol
from latency.units import Unit
from latency.values import OptionalSha256, SampleUs, Sha256, TimeUs, Width, require_date

SCHEMA = "latency-table/3"

_ROUNDED_US = 0.001
"""Rounding to a nanosecond may add this much."""

_NETWORK_KEY = re.compile(r"network-[0-9a-f]{16}")


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
    """A table of another device that blocks were transferred from.

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
        """A short description."""
        threads = self.device.threads
        how = f"{self.runtime.name}, {self.precision}" + f", {threads} thread{'s' * (threads > 1)}" * (
            self.device.kind == "cpu"
        )
        said = f"{self.device.name} ({how}; sha256 {self.sha256[:16]})"
        return f"{said}, which is not measured: {self.origin}" if self.origin else said


class TableHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all rows of a table share.

    Two tables may be pooled only if every field except `created` and `bundle_sha256` is equal.

    Attributes:
        schema: the file format.
        device: where it was measured.
        runtime: what ran the blocks.
        protocol: how they were timed.
        precision: of the networks.
        batch: images per inference.
        lowering: version of the code that wrote the ONNX.
        settings: other settings that select code, by name, such as TensorRT's `optimization_level`.
        space: the search space that the blocks are of; "" for none.
        created: day of the first row, ISO 8601; of a replayed table the day of the recording.
        recording: what the table was replayed from; None for a table that was measured.
        bundle_sha256: of the block bundle that was measured; "" where the blocks came from the space itself.
        like: tables of other devices, by which blocks are known that were not measured on this one.
    """

    schema: Literal["latency-table/3"] = SCHEMA
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
        """Why the table is not a measurement of its device; "" if it is one."""
        words: list[str] = []
        if self.runtime.name == "simulated":
            words.append("simulated: no such device exists")
        if (recording := self.recording) is not None:
            words.append(f"replayed from a recording of {recording.created}, sha256 {recording.sha256[:16]}")
            if difference := first_difference(recording.protocol, self.protocol):
                field, was, now = difference
                words.append(f"resampled by another protocol: {field} is {now!r}, it was recorded with {was!r}")
        return "; ".join(words)

    def require_origin(self, expected: str, *, what: str, fix: str) -> None:
        """Require an origin, "" for a measured table; `what` begins and `fix` ends the message of the error.

        Raises:
            FingerprintMismatch: the table has another.
        """
        if self.origin != expected:
            raise FingerprintMismatch(what, "origin", self.origin or "measured", expected or "measured", fix)

    def command(self, source: str, out: str) -> str:
        """The command that measures a space or a block bundle the way this table was measured.

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
        return (
            f"lathe profile {source} --backend {shlex.quote(backend)}{threads}{timing}{batch} --out {shlex.quote(out)}"
        )

    def measuring(self, out: str) -> str:
        """The command that measures more of the table's own space."""
        return self.command(shlex.quote(self.space) if self.space else "SPACE", out)

    def made_like(self, other: "TableHeader") -> "TableHeader":
        """A copy with the fields that pooled tables may differ in taken from `other`."""
        return msgspec.structs.replace(self, created=other.created, bundle_sha256=other.bundle_sha256)


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement, or why there is none.

    Attributes:
        kind: `overhead` is an empty network, `sentinel` a block measured repeatedly to detect drift, `network` a whole
            network.
        key: what was measured; of a block its `BlockSpec.key`, of a sentinel `sentinel`.
        status: `ok`; `unstable`: measured with less certainty than the protocol asks; `transferred`: predicted from
            tables of other devices (`TableHeader.like`) and some measured blocks; or what failed.
        samples_us: all samples; empty if nothing was measured.
        median_us: their median, or the prediction; 0 after a failure.
        low_us: lower end of its interval.
        high_us: upper end.
        p90_us: the samples' 90th percentile; None if there are too few (`latency.measure.percentile`).
        p99_us: their 99th; likewise.
        reason: why it is unstable; "" otherwise.
        error: message of the failure, or how a measurement deviates from the protocol.
        blocks: keys of a network's blocks, in order; of a sentinel the key of the block that it measures.
        clocks: device readings between windows of samples, by name with unit; `discarded_windows` were dropped.
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
        """Whether it was measured: `ok`, or `unstable` with a wider interval."""
        return self.status in ("ok", "unstable")

    @property
    def known(self) -> bool:
        """Whether there is a latency, measured or transferred."""
        return self.measured or self.status == "transferred"


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A latency in microseconds with its interval and its source.

    Attributes:
        us: the latency.
        low_us: lower end of its interval.
        high_us: upper end.
        source: how the table gives it.
        origin: what to know of that table: why it is not a measurement of its device (`TableHeader.origin`), and of a
            prediction which whole networks failed that should have judged it (`LatencyTable.unproved`), and whether
            blocks were transferred.
    """

    us: TimeUs
    low_us: TimeUs
    high_us: TimeUs
    source: Literal["measured", "interpolated", "transferred", "predicted"]
    origin: str = ""

    def remarks(self, unit: Unit) -> list[str]:
        """Remarks for the user: why its table is not a plain measurement."""
        return [self.origin] if self.origin else []


def inconsistent(row: Row) -> tuple[str, str] | None:
    """The first field that contradicts the row's samples, and how; None if the row is consistent."""
    if row.measured != bool(row.samples_us):
        return "status", f"it is {row.status}, with {len(row.samples_us)} samples"
    if row.status == "transferred":
        ordered = 0 < row.low_us <= row.median_us <= row.high_us
        return (
            None
            if ordered
            else ("median_us", f"it is {row.median_us}, and must be in its interval, {row.low_us} to {row.high_us}")
        )
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


def misnamed(row: Row, parsed: set[str]) -> tuple[str, str] | None:
    """The field that does not fit the kind of row, `key`, `blocks` or `status`, and how; None if all fit.

    Args:
        row: to be checked.
        parsed: block keys that already parsed; new ones are added.
    """
    keys = {"block": (row.key,), "network": row.blocks}.get(row.kind, ())
    for key in keys:
        if key not in parsed:
            try:
                BlockSpec.parse(key)
            except LatencyError as error:
                return "key" if row.kind == "block" else "blocks", str(error)
            parsed.add(key)
    if row.status == "transferred" and row.kind != "block":
        return "status", f"it is transferred, and must be measured for a row of the kind {row.kind}"
    if row.kind in ("overhead", "sentinel") and row.key != row.kind:
        return "key", f"it is {row.key!r}, and must be {row.kind!r} for a row of this kind"
    if row.kind == "network" and not _NETWORK_KEY.fullmatch(row.key):
        return "key", f"it is {row.key!r}, and must be network- and 16 hexadecimal digits for a network"
    return None
