"""Replay of a recorded table as a device, to try out what is built on a table without its device."""

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
    """Backend that runs nothing: it returns a table's samples in order, repeatedly. Its clock adds them up.

    Device, runtime, precision and settings are those of the table. The header of a table made with it has `recording`.

    Args:
        path: path of the table.
        precision: required precision of the table; None for any.

    Raises:
        LatencyError: the path is empty, or the table has another precision.
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
        """Return the recording of `Lowered.key`.

        Raises:
            BuildFailed: there is no recording, or it says that the build failed.
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
    """A recorded row that can be run."""

    def __init__(self, row: Row, clock: VirtualClock) -> None:
        self._row, self._clock = row, clock
        self._samples_us = itertools.cycle(row.samples_us)

    def run(self, count: int) -> list[float]:
        """Return the next `count` samples; the last one is followed by the first.

        Raises:
            RunFailed: the recorded run failed.
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
