"""Blocks and networks x backend -> rows of a table: without repeats, resumable, a failure is a row."""

import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from latency.backends import Backend
from latency.block import BlockSpec
from latency.errors import BuildFailed, RunFailed
from latency.measure import measure
from latency.protocol import Protocol
from latency.table import Row, TableHeader, TableWriter


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Something to measure. Make it with `block` or `network`.

    Attributes:
        kind: as of a table's row.
        key: as of a table's row.
        blocks: of a network the keys of its blocks, in order.
        onnx: makes the serialized model; called only when it is measured.
    """

    kind: Literal["block", "overhead", "network"]
    key: str
    blocks: tuple[str, ...] = ()
    onnx: Callable[[], bytes]

    @classmethod
    def block(cls, spec: BlockSpec, onnx: Callable[[], bytes]) -> "Workload":
        """One block."""
        return cls(kind="block", key=spec.key, onnx=onnx)

    @classmethod
    def network(cls, blocks: Sequence[BlockSpec], onnx: Callable[[], bytes]) -> "Workload":
        """A whole network, given its blocks in order."""
        keys = tuple(spec.key for spec in blocks)
        return cls(kind="network", key=f"network-{hashlib.sha256('|'.join(keys).encode()).hexdigest()[:16]}", blocks=keys, onnx=onnx)


@dataclass(frozen=True)
class Dropped:
    """A torn last line was cut off; what it was about is measured again."""

    line: int


@dataclass(frozen=True)
class Resumed:
    """Of `total` things to measure `done` are in the table."""

    done: int
    total: int


@dataclass(frozen=True)
class Measured:
    """A row was appended: the `done`-th of `total`. A retry of an unstable row does not count."""

    row: Row
    done: int
    total: int


@dataclass(frozen=True)
class Retrying:
    """All is measured; so many rows are unstable and are measured once more."""

    rows: int


Event = Dropped | Resumed | Measured | Retrying


def profile(
    workloads: Sequence[Workload], backend: Backend, out: str | os.PathLike[str], *, protocol: Protocol, lowering: str, space: str = ""
) -> Iterator[Event]:
    """Measure workloads and the backend's overhead, and append each to a table as soon as it is measured.

    What is in the table with status `ok` is not measured again, so the same call resumes after any interruption.

    Args:
        workloads: what to measure; of several with one key the first counts.
        backend: where.
        out: the table's file, made where there is none.
        protocol: how.
        lowering: version of the code that wrote the ONNX.
        space: name of the search space that the blocks are of.

    Yields:
        What happens, as it happens.

    Raises:
        TableError: the file is no sound table, or another process writes it.
        FingerprintMismatch: the file was measured otherwise.
    """
    header = TableHeader(
        device=backend.device,
        runtime=backend.runtime,
        protocol=protocol,
        precision=backend.precision,
        lowering=lowering,
        space=space,
        created=datetime.date.today().isoformat(),
    )
    wanted: dict[str, Workload] = {}
    for work in (Workload(kind="overhead", key="overhead", onnx=overhead_onnx), *workloads):
        wanted.setdefault(work.key, work)
    with TableWriter(out, header) as writer:
        if writer.torn:
            yield Dropped(writer.torn)
        pending = [work for key, work in wanted.items() if key not in writer.rows or writer.rows[key].status != "ok"]
        done, total = len(wanted) - len(pending), len(wanted)
        if done:
            yield Resumed(done, total)
        unstable: list[Workload] = []
        for work in pending:
            row = _measure(work, backend, protocol)
            writer.append(row)
            done += 1
            if row.status == "unstable":
                unstable.append(work)
            yield Measured(row, done, total)
        if unstable:
            yield Retrying(len(unstable))
        for work in unstable:
            row = _measure(work, backend, protocol)
            writer.append(row)
            yield Measured(row, done, total)


def _measure(work: Workload, backend: Backend, protocol: Protocol) -> Row:
    row = partial(Row, kind=work.kind, key=work.key, blocks=work.blocks)
    try:
        with backend.compile(work.onnx()) as compiled:
            found = measure(compiled, protocol)
    except BuildFailed as error:
        return row(status="build_failed", error=str(error))
    except RunFailed as error:
        return row(status="run_failed", error=str(error))
    return row(**msgspec.structs.asdict(found))


def overhead_onnx() -> bytes:
    """A network that does next to nothing: what is left is what every inference pays."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "overhead", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
