"""Measure blocks and networks into a table: no repeats, resumable, failures as rows, drift detected and repaired."""

import datetime
import itertools
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import msgspec

from latency.backends import Backend, BuildsApart, Compiled, Replays
from latency.block import BlockSpec, network_key
from latency.errors import BuildFailed, RunFailed
from latency.lowered import OVERHEAD, Lowered, overhead_onnx, require_static
from latency.measure import measure
from latency.protocol import Protocol
from latency.rows import OldTable, Row, TableHeader
from latency.sentinel import Safeguards, doubtful, drift, reference
from latency.tablefile import TableWriter


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A block or network to measure. Make it with `block` or `network`.

    Attributes:
        kind: kind of its row.
        key: key of its row.
        blocks: keys of a network's blocks, in order.
        onnx: lowers it to serialized ONNX, or to ONNX and other forms; called only when it is measured.
        batch: images per inference.
    """

    kind: Literal["block", "overhead", "network"]
    key: str
    blocks: tuple[str, ...] = ()
    onnx: Callable[[], bytes | Lowered]
    batch: int = 1

    @classmethod
    def block(cls, spec: BlockSpec, onnx: Callable[[], bytes | Lowered], batch: int = 1) -> "Workload":
        """Return a workload for one block."""
        return cls(kind="block", key=spec.key, onnx=onnx, batch=batch)

    @classmethod
    def network(cls, blocks: Sequence[BlockSpec], onnx: Callable[[], bytes | Lowered], batch: int = 1) -> "Workload":
        """Return a workload for a whole network, given its blocks in order."""
        keys = tuple(spec.key for spec in blocks)
        return cls(kind="network", key=network_key(keys), blocks=keys, onnx=onnx, batch=batch)

    def lower(self) -> Lowered:
        """Lower it.

        Raises:
            BuildFailed: the ONNX has no static shape, or another batch.
        """
        lowered = replace(Lowered.of(self.onnx()), key=self.key)
        require_static(lowered.onnx, batch=self.batch)
        return lowered


@dataclass(frozen=True)
class TornLineDropped:
    """A torn last line was dropped; its workload is measured again."""

    line: int


@dataclass(frozen=True)
class Resumed:
    """`done` of `total` workloads are in the table already."""

    done: int
    total: int


@dataclass(frozen=True)
class Measured:
    """A row was appended: the `done`-th of `total`, not counting retries of unstable rows."""

    row: Row
    done: int
    total: int


@dataclass(frozen=True)
class Retrying:
    """Everything is measured; `rows` unstable rows are measured once more."""

    rows: int


@dataclass(frozen=True)
class DriftChecked:
    """The sentinel was measured: its relative slowdown, 0 for no drift, and the number of rows to measure again."""

    row: Row
    drift: float
    requeued: int


Event = TornLineDropped | Resumed | Measured | Retrying | DriftChecked


def profile(
    workloads: Sequence[Workload],
    backend: Backend,
    out: str | os.PathLike[str],
    *,
    protocol: Protocol,
    lowering: str,
    space: str = "",
    safeguards: Safeguards | None = None,
    bundle_sha256: str = "",
    like: tuple[OldTable, ...] = (),
) -> Iterator[Event]:
    """Measure workloads and the backend's overhead, and append each to a table as soon as it is measured.

    Rows with status `ok` that are not doubtful because of drift are not measured again: the same call resumes after any
    interruption. A workload that is measured again gets a new row, which supersedes the old one.

    Args:
        workloads: workloads of one batch; of several with one key, the first is used.
        backend: backend to measure with.
        out: path of the table, created if it does not exist.
        protocol: timing protocol.
        lowering: version of the code that wrote the ONNX.
        space: name of the search space of the blocks.
        safeguards: None for the defaults.
        bundle_sha256: hash of the block bundle of the workloads; "" for none.
        like: tables of other devices from which blocks will be transferred, for the header.

    Yields:
        Events, as they happen.

    Raises:
        TableError: the file is not a sound table, another process writes it, or the disk is full.
        FingerprintMismatch: the file was measured with other settings; names the field.
    """
    batch = workloads[0].batch if workloads else 1
    assert all(work.batch == batch for work in workloads), "a table is of one batch"
    recording = backend.recording if isinstance(backend, Replays) else None
    header = TableHeader(
        device=backend.device,
        runtime=backend.runtime,
        protocol=protocol,
        precision=backend.precision,
        batch=batch,
        lowering=lowering,
        settings=dict(backend.settings),
        space=space,
        created=recording.created if recording else datetime.date.today().isoformat(),
        recording=recording,
        bundle_sha256=bundle_sha256,
        like=like,
    )
    wanted: dict[str, Workload] = {}
    for work in (Workload(kind="overhead", key=OVERHEAD, onnx=partial(overhead_onnx, batch), batch=batch), *workloads):
        wanted.setdefault(work.key, work)
    with ExitStack() as stack:
        writer = stack.enter_context(TableWriter(out, header))
        yield from _Profiling(wanted, backend, writer, protocol, safeguards or Safeguards(), stack).run()


class _Profiling:
    """One call of `profile`."""

    def __init__(
        self,
        workloads: dict[str, Workload],
        backend: Backend,
        writer: TableWriter,
        protocol: Protocol,
        safeguards: Safeguards,
        stack: ExitStack,
    ) -> None:
        self._workloads = workloads
        self._backend = backend
        self._writer = writer
        self._protocol = protocol
        self._safeguards = safeguards
        self._stack = stack
        self._compiler = _Compiler(backend, stack)
        doubted, unwatched = doubtful(writer.history) if safeguards.sentinel_every else (set[str](), list[str]())
        self._done = {key for key, row in writer.rows.items() if row.status == "ok"} & workloads.keys() - doubted
        self._unwatched = [key for key in dict.fromkeys(unwatched) if key in self._done]  # since the last sentinel
        self._queue = deque(work for key, work in workloads.items() if key not in self._done)
        self._drift_retries: Counter[str] = Counter()  # retries of each key because of drift
        self._sentinel: Workload | None = None
        self._compiled_sentinel: Compiled | None = None  # compiled once: another build may have another speed
        self._reference: Row | None = None
        self._checked_ns = 0

    def run(self) -> Iterator[Event]:
        if self._writer.torn:
            yield TornLineDropped(self._writer.torn)
        if self._done:
            yield Resumed(len(self._done), len(self._workloads))
        if not self._queue and not self._unwatched:
            return
        if self._safeguards.sentinel_every:
            self._start_sentinel()
            yield from self._check_drift()
        unstable: dict[str, Workload] = {}
        retried: set[str] = set()
        while self._queue:
            work = self._queue.popleft()
            row = self._measure(work)
            self._writer.append(row)
            self._done.add(work.key)
            self._unwatched.append(work.key)
            if row.status == "unstable" and work.key not in retried:
                unstable[work.key] = work
            yield Measured(row, len(self._done), len(self._workloads))
            if not self._queue or self._is_check_due():
                yield from self._check_drift()
            if not self._queue and unstable:
                yield Retrying(len(unstable))
                retried.update(unstable)
                self._queue.extend(unstable.values())
                unstable = {}

    def _measure(self, work: Workload) -> Row:
        row = partial(Row, kind=work.kind, key=work.key, blocks=work.blocks)
        try:
            with self._compiler.compile(work, upcoming=self._queue) as compiled:
                return self._timed(compiled, row)
        except BuildFailed as error:
            return row(status="build_failed", error=str(error))
        except RunFailed as error:  # while loading
            return row(status="run_failed", error=str(error))

    def _timed(self, compiled: Compiled, row: Callable[..., Row]) -> Row:
        try:
            monitor = self._backend.monitor if self._safeguards.monitor else None
            return row(**msgspec.structs.asdict(measure(compiled, self._protocol, self._backend.clock, monitor)))
        except RunFailed as error:
            return row(status="run_failed", error=str(error))

    def _is_check_due(self) -> bool:
        elapsed_s = (self._backend.clock() - self._checked_ns) / 1e9
        return len(self._unwatched) == self._safeguards.sentinel_every or elapsed_s >= self._safeguards.sentinel_every_s

    def _start_sentinel(self) -> None:
        """Choose and compile the sentinel: that of the table, else a block of median size to keep the device busy."""
        before = next(
            (row.blocks[0] for row in reversed(self._writer.history) if row.kind == "sentinel" and row.blocks), ""
        )
        blocks = sorted((work for work in self._workloads.values() if work.kind == "block"), key=_computation)
        for work in [self._workloads.get(before), *blocks[len(blocks) // 2 :], *reversed(blocks[: len(blocks) // 2])]:
            if work is not None:
                try:
                    self._compiled_sentinel = self._stack.enter_context(self._backend.compile(work.lower()))
                except (BuildFailed, RunFailed):
                    continue
                self._sentinel, self._reference = work, reference(self._writer.history, work.key)
                return

    def _measure_sentinel(self) -> Row:
        assert self._compiled_sentinel is not None
        assert self._sentinel is not None
        row = self._timed(
            self._compiled_sentinel, partial(Row, kind="sentinel", key="sentinel", blocks=(self._sentinel.key,))
        )
        # A sentinel's status and messages describe drift between two sentinels, not instability within one.
        return msgspec.structs.replace(row, status="ok", reason="", error="") if row.measured else row

    def _check_drift(self) -> Iterator[Event]:
        """Measure the sentinel. After drift, wait for the device to recover and requeue the rows since the last one."""
        rows, self._unwatched = self._unwatched, []
        if self._sentinel is None:
            return
        row = self._measure_sentinel()
        if self._reference is None and row.measured:
            # until it has warmed up
            row = self._reference = self._wait_until_calm(row, lambda row, before: bool(self._drift(row, before)))
        if self._reference is None or not row.measured:
            self._sentinel = None
            self._writer.append(row)
            yield DriftChecked(row, 0.0, 0)
            return
        change = self._drift(row, self._reference)
        requeued: list[str] = []
        if change:
            self._writer.append(
                msgspec.structs.replace(row, status="unstable", error=f"the device drifted by {change:+.1%}")
            )
            expected = self._reference
            row = self._wait_until_calm(row, lambda row, _: bool(self._drift(row, expected)))
            if stays := self._drift(row, expected):
                row = self._reference = msgspec.structs.replace(
                    row, error=f"the device stays at {stays:+.1%}: the new reference"
                )
            requeued = [key for key in rows if self._drift_retries[key] < self._safeguards.retries]
            self._drift_retries.update(requeued)
            self._queue.extend(self._workloads[key] for key in requeued)
        self._writer.append(row)
        self._checked_ns = self._backend.clock()
        yield DriftChecked(row, change, len(requeued))

    def _drift(self, row: Row, other: Row) -> float:
        return drift(row, other, self._safeguards.drift_limit)

    def _wait_until_calm(self, row: Row, restless: Callable[[Row, Row], bool]) -> Row:
        """Measure the sentinel until two in succession are not `restless`, or patience ends; return the last one."""
        end_ns = self._backend.clock() + self._safeguards.patience_s * 1e9
        while True:
            before, row = row, self._measure_sentinel()
            if not restless(row, before) or self._backend.clock() >= end_ns:
                return row


def _computation(work: Workload) -> int:
    """Return a rough measure of a block's computation, to sort blocks by."""
    spec = BlockSpec.parse(work.key)
    return math.prod(width for _, width in spec.widths) * int(spec.attr("h")) * int(spec.attr("w"))


class _Compiler:
    """Compiles workloads; if the backend can build in the background, the next ones are built ahead."""

    def __init__(self, backend: Backend, stack: ExitStack) -> None:
        self._backend = backend
        builders = backend.builders() if isinstance(backend, BuildsApart) else None
        self._builds = stack.enter_context(builders) if builders else None
        self._ahead: dict[str, Future[bytes]] = {}

    def compile(self, work: Workload, upcoming: Iterable[Workload]) -> Compiled:
        if self._builds is None or not isinstance(self._backend, BuildsApart):
            return self._backend.compile(work.lower())
        engine = self._submit(work)
        for later in itertools.islice(upcoming, 2 * self._builds.workers):
            self._submit(later)
        del self._ahead[work.key]
        return self._backend.load(engine.result())

    def _submit(self, work: Workload) -> Future[bytes]:
        assert self._builds
        if work.key not in self._ahead:
            try:
                self._ahead[work.key] = self._builds.submit(work.lower().onnx)
            except BuildFailed as error:
                self._ahead[work.key] = Future()
                self._ahead[work.key].set_exception(error)
        return self._ahead[work.key]
