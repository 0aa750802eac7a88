"""Measure a few blocks on a new device, the anchors, and transfer the others from tables of old devices.

One anchor in five, chosen by a hash of its key, is held out: it is measured after the others have predicted it. Its
transferred row precedes the measured row, which supersedes it, so `prove` can repeat the judgement on any table.
Afterwards it is an anchor like the others.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latency.block import BlockSpec
from latency.coverage import Judged, Proof, Rounds, held_out, proof_of
from latency.errors import CoverageError, FingerprintMismatch, LatencyError
from latency.profile import Event, Workload
from latency.rows import OldTable, Row
from latency.table import LatencyTable
from latency.tablefile import TableWriter
from latency.transfer import MIN_ANCHORS, Transfer, describe

DEFAULT_ANCHORS = 60
_HELD_OUT = 5  # one anchor in 5 is held out


@dataclass(frozen=True)
class Anchored:
    """All anchors are measured, and the other blocks are transferred.

    Attributes:
        measured: number of anchors that could be measured.
        transferred: number of transferred blocks.
        proof: errors at the held-out anchors.
    """

    measured: int
    transferred: int
    proof: Proof


def require_flags(like: Sequence[object], anchors: int | None, shard: str) -> None:
    """Require that the flags of a transfer are consistent.

    Raises:
        LatencyError: a flag is out of range or contradicts another.
    """
    if not like and anchors is not None:
        raise LatencyError(f"--anchors {anchors} is of --like: give --like OLD.latency.jsonl, or leave it out")
    if anchors is not None and anchors < 1:
        raise LatencyError(f"--anchors must be 1 or more, found {anchors}")
    if like and shard != "1/1":
        raise LatencyError(
            f"--shard {shard} is for measuring all blocks, and --like measures a few: leave one of them out"
        )


def load_old_tables(paths: Sequence[str | os.PathLike[str]], *, lowering: str) -> list[LatencyTable]:
    """Load the tables to transfer from; they may be of another runtime or precision.

    Raises:
        TableError: a table cannot be read.
        FingerprintMismatch: a table's ONNX is from another version of the lowering; names the field.
        LatencyError: a table is given twice.
    """
    tables = [LatencyTable.load(path) for path in paths]
    for table in tables:
        if table.header.lowering != lowering:
            fix = "measure the old device anew, or give a table that was measured by this version"
            raise FingerprintMismatch(f"table {table.path}", "lowering", table.header.lowering, lowering, fix)
    if len({table.sha256 for table in tables}) < len(tables):
        raise LatencyError("--like names one table twice: give each once")
    return tables


def describe_tables(tables: Sequence[LatencyTable]) -> tuple[OldTable, ...]:
    """Describe the old tables for the header of the new one."""
    return tuple(
        OldTable(
            sha256=table.sha256,
            device=table.header.device,
            runtime=table.header.runtime,
            precision=table.header.precision,
            origin=table.origin,
        )
        for table in tables
    )


def profile_like(
    workloads: Sequence[Workload],
    tables: Sequence[LatencyTable],
    out: str | os.PathLike[str],
    measure: Callable[[Sequence[Workload]], Iterator[Event]],
    *,
    anchors: int = DEFAULT_ANCHORS,
) -> Iterator[Event | Anchored]:
    """Measure anchors, overhead and networks, and append a row for every other block; the same call resumes.

    Args:
        workloads: workloads that the table is to cover.
        tables: tables of old devices, each with all of the blocks.
        out: path of the new table.
        measure: function that profiles workloads into it.
        anchors: number of blocks to measure.

    Raises:
        CoverageError: an old table lacks a block.
        LatencyError: there are fewer anchors than families of blocks, or more than blocks; or too few could be
            measured; also whatever `measure` raises.
    """
    blocks = {work.key: work for work in workloads if work.kind == "block"}
    others = [work for work in workloads if work.kind != "block"]
    transfer, chosen, judges = _plan([BlockSpec.parse(key) for key in blocks], tables, anchors)
    rounds = Rounds(out, measure, len(chosen) + len(judges) + len({work.key for work in others}) + 1)
    yield from rounds.resumed(workloads)
    yield from rounds.measure([blocks[key] for key in chosen])
    anchor_keys = [*chosen, *judges]
    if rounds.has_new(judges):
        _write(out, list(blocks), anchor_keys, transfer)
    yield from rounds.measure([blocks[key] for key in anchor_keys])
    yield _write(out, list(blocks), anchor_keys, transfer)
    yield from rounds.measure([*(blocks[key] for key in anchor_keys), *others])


def prove(table: LatencyTable) -> Proof:
    """Return how well the held-out anchors were predicted before they were measured."""
    held = held_out([BlockSpec.parse(row.key) for row in table.rows if row.kind == "block"])
    rows = {row.key: row for row in table.rows if row.measured and row.key in held}
    before: dict[str, Row] = {}
    judged: dict[str, Judged] = {}
    for row in table.history:
        if row.status == "transferred":
            before[row.key] = row
        elif row.key in rows and row.key in before:
            transferred = before[row.key]
            judged[row.key] = Judged(rows[row.key], transferred.median_us, transferred.low_us, transferred.high_us)
    return proof_of(list(judged.values()))


def _plan(
    specs: Sequence[BlockSpec], tables: Sequence[LatencyTable], anchors: int
) -> tuple[Transfer, list[str], list[str]]:
    """Return the transfer model, and the keys of the chosen and of the held-out anchors."""
    families = {spec.family for spec in specs}
    if anchors > len(specs):
        raise LatencyError(
            f"--anchors {anchors} is more than the {len(specs)} blocks: leave --like out, and all are measured"
        )
    candidates = sorted(held_out(specs), key=lambda key: hashlib.sha256(key.encode()).digest())
    judges = candidates[: anchors // _HELD_OUT]
    if anchors - len(judges) < (least := max(MIN_ANCHORS, len(families))):
        most = least + len(candidates[: least // (_HELD_OUT - 1)])
        raise LatencyError(
            f"--anchors {anchors} is too few: each of the {len(families)} families of blocks needs one, the fit "
            f"{MIN_ANCHORS}, and some are held out: give {most} or more"
        )
    old_us = np.array([[_latency_us(table, spec) for table in tables] for spec in specs])
    transfer = Transfer(old_us, describe(specs))
    places = {spec.key: place for place, spec in enumerate(specs)}
    order = transfer.order([spec.family for spec in specs], [places[key] for key in candidates])
    chosen = [specs[place].key for place in itertools.islice(order, anchors - len(judges))]
    return transfer, chosen, judges


def _latency_us(table: LatencyTable, spec: BlockSpec) -> float:
    try:
        return table.lookup(spec).us
    except CoverageError as error:
        of = table.header.space or "-"
        raise CoverageError(
            f"--like {table.path}, of the space {of}, does not cover the space to profile: {error}"
        ) from error


def _write(
    out: str | os.PathLike[str], keys: Sequence[str], anchor_keys: Sequence[str], transfer: Transfer
) -> Anchored:
    """Fit the anchors measured so far; append the transferred rows that change."""
    table = LatencyTable.load(out)
    rows, known = (
        {row.key: row for row in table.rows},
        {row.key for row in table.rows if row.measured} & set(anchor_keys),
    )
    places = [place for place, key in enumerate(keys) if key in known]
    if len(places) < MIN_ANCHORS:
        failed = next((row for key in anchor_keys if (row := rows.get(key)) is not None and not row.measured), None)
        why = f": block {failed.key} is {failed.status} ({failed.error})" if failed else ""
        raise LatencyError(
            f"{len(places)} anchors could be measured, which is too few to transfer the other blocks{why}"
        )
    prediction = transfer.fit(places, [rows[keys[place]].median_us for place in places])
    fitted = {
        key: Row(
            kind="block",
            key=key,
            status="transferred",
            median_us=round(us, 3),
            low_us=round(low, 3),
            high_us=round(high, 3),
        )
        for key, us, low, high in zip(
            keys, prediction.us.tolist(), prediction.low_us.tolist(), prediction.high_us.tolist(), strict=True
        )
        if key not in rows or rows[key].status == "transferred"
    }
    with TableWriter(out, table.header) as writer:
        writer.append(*(row for key, row in fitted.items() if rows.get(key) != row))
    return Anchored(len(places), len(fitted), prove(LatencyTable.load(out)))
