"""Latency of a network by a table, block by block, with what the table does not cover."""

from collections.abc import Sequence

import msgspec

from latency.block import BlockSpec
from latency.device import Device, Runtime
from latency.errors import CoverageError
from latency.rows import Latency
from latency.table import LatencyTable


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of the network.

    Attributes:
        key: of the block.
        layer: its name in the network; "" where it has none.
        alone: latency by itself; None where the table does not cover it.
        adds: what it adds to the latency of the network, of which it is a part; likewise.
        reason: why it is not covered; "" where it is.
    """

    key: str
    layer: str = ""
    alone: Latency | None = None
    adds: Latency | None = None
    reason: str = ""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network by one table.

    Attributes:
        table: path of the table.
        sha256: of that file.
        device: that the table is of.
        runtime: of that device.
        precision: of the table.
        space: that the table is of.
        latency: of the network; where blocks are not covered, of the others alone. None where none is covered.
        measured: of the network, where the table has it as a whole.
        network_us: part of the latency that belongs to no block.
        parts: the blocks in the order in which they run.
    """

    table: str
    sha256: str
    device: Device
    runtime: Runtime
    precision: str
    space: str
    latency: Latency | None
    measured: Latency | None
    network_us: float
    parts: tuple[Part, ...]

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Keys of the blocks that the table does not cover, each once."""
        return tuple(dict.fromkeys(part.key for part in self.parts if part.alone is None))


def estimate(table: LatencyTable, blocks: Sequence[BlockSpec], layers: Sequence[str] = ()) -> Estimate:
    """Predict a network of which blocks may be missing from a table.

    Args:
        table: the table.
        blocks: those of the network, in order.
        layers: name of each in the network; none where they have no names.
    """
    parts = tuple(_part(table, block, layer) for block, layer in zip(blocks, layers or [""] * len(blocks), strict=True))
    known = [(block, part.alone) for block, part in zip(blocks, parts, strict=True) if part.alone is not None]
    return Estimate(
        table=table.path,
        sha256=table.sha256,
        device=table.header.device,
        runtime=table.header.runtime,
        precision=table.header.precision,
        space=table.header.space,
        latency=table.combine([latency for _, latency in known], [block for block, _ in known]) if known else None,
        measured=table.measured_network(blocks),
        network_us=table.predictor.network_us,
        parts=parts,
    )


def _part(table: LatencyTable, block: BlockSpec, layer: str) -> Part:
    try:
        alone, adds = table.lookup(block), table.share(block, first=False)
    except CoverageError as error:
        return Part(key=block.key, layer=layer, reason=error.reason)
    return Part(key=block.key, layer=layer, alone=alone, adds=adds)
