"""A recorded table as a device: every key takes again what it took then.

For trying out what stands on a table where its device is not.
"""

import itertools
from pathlib import Path
from types import TracebackType
from typing import Literal

from latency.backends.simulated import VirtualClock
from latency.errors import BuildFailed, LatencyError, RunFailed
from latency.lowered import Lowered
from latency.rows import Recording, Row
from latency.table import LatencyTable


class Replay:
    """Backend that runs nothing: it gives back a table's samples, in their order and over again.

    Time is that of the samples.

    Device, runtime, precision and settings are the table's. A table that is made with it says so: its header has
    `recording`.

    Args:
        path: of the table.
        precision: None, or what the table's must be.

    Raises:
        LatencyError: no path, or another precision.
        TableError: the table cannot be read.
    """

    name = "replay"
    monitor = None

    def __init__(self, path: str | Path, *, precision: Literal["fp32", "fp16"] | None = None) -> None:
        if not str(path):
            raise LatencyError("backend 'replay' needs a table: name it as replay:PATH")
        header = (table := LatencyTable.load(path)).header
        self.recording = Recording(sha256=table.sha256, created=header.created, protocol=header.protocol)
        if precision not in (None, header.precision):
            raise LatencyError(
                f"table {path} is of precision {header.precision!r}, not {precision!r}: leave it out, or give another "
                "table"
            )
        self.device, self.runtime, self.settings = header.device, header.runtime, header.settings
        self.precision: Literal["fp32", "fp16"] = header.precision
        self.clock = VirtualClock()
        self._path, self._rows = path, {row.key: row for row in table.rows}

    def compile(self, model: bytes | Lowered) -> "Replayed":
        """What was recorded of `Lowered.key`.

        Raises:
            BuildFailed: nothing was, or that it cannot be built.
        """
        key = Lowered.of(model).key
        row = self._rows.get(key)
        if row is None:
            raise BuildFailed(f"table {self._path} has no row {key!r} to replay")
        if row.status == "build_failed":
            raise BuildFailed(row.error)
        if row.status == "transferred":
            raise BuildFailed(
                f"table {self._path} has no samples of {key!r} to replay: it is transferred from another device"
            )
        return Replayed(row, self.clock)


class Replayed:
    """A row as something that runs."""

    def __init__(self, row: Row, clock: VirtualClock) -> None:
        self._row, self._clock = row, clock
        self._samples_us = itertools.cycle(row.samples_us)

    def run(self, count: int) -> list[float]:
        """The next `count` samples; after the last one the first again.

        Raises:
            RunFailed: it failed when it was recorded.
        """
        if not self._row.measured:
            raise RunFailed(self._row.error)
        samples_us = list(itertools.islice(self._samples_us, count))
        self._clock.advance(sum(samples_us))
        return samples_us

    def __enter__(self) -> "Replayed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
