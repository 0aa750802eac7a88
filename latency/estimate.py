"""Latency of a network according to a table, block by block, including blocks that the table does not cover."""

from collections.abc import Sequence

import msgspec

from latency.block import BlockSpec
from latency.device import Device, Runtime
from latency.errors import CoverageError
from latency.rows import Latency
from latency.table import LatencyTable


class BlockEstimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a network.

    Attributes:
        key: key of the block.
        layer: name of its layer in the network; "" for none.
        alone: latency of the block by itself; None if the table does not cover it.
        adds: its contribution to the latency of the network; None if the table does not cover it.
        reason: why it is not covered; "" if it is.
    """

    key: str
    layer: str = ""
    alone: Latency | None = None
    adds: Latency | None = None
    reason: str = ""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Estimated latency of a network.

    Attributes:
        table: path of the table.
        sha256: hash of the table's file.
        device: device of the table.
        runtime: runtime on that device.
        precision: precision of the table.
        space: search space of the table.
        latency: latency of the network without the blocks that are not covered; None if no block is covered.
        measured: measured latency of the whole network, if the table has it.
        network_us: share of the latency that belongs to no block.
        parts: blocks in execution order.
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
    parts: tuple[BlockEstimate, ...]

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Distinct keys of the blocks that the table does not cover."""
        return tuple(dict.fromkeys(part.key for part in self.parts if part.alone is None))


def estimate(table: LatencyTable, blocks: Sequence[BlockSpec], layers: Sequence[str] = ()) -> Estimate:
    """Estimate the latency of a network whose blocks may be missing from a table.

    Args:
        table: latency table.
        blocks: blocks of the network, in execution order.
        layers: layer name of each block; empty if they have no names.
    """
    parts = tuple(
        _block_estimate(table, block, layer) for block, layer in zip(blocks, layers or [""] * len(blocks), strict=True)
    )
    covered = [(block, part.alone) for block, part in zip(blocks, parts, strict=True) if part.alone is not None]
    return Estimate(
        table=table.path,
        sha256=table.sha256,
        device=table.header.device,
        runtime=table.header.runtime,
        precision=table.header.precision,
        space=table.header.space,
        latency=table.combine([latency for _, latency in covered], [block for block, _ in covered])
        if covered
        else None,
        measured=table.measured_network(blocks),
        network_us=table.predictor.network_us,
        parts=parts,
    )


def _block_estimate(table: LatencyTable, block: BlockSpec, layer: str) -> BlockEstimate:
    try:
        alone, adds = table.lookup(block), table.share(block, first=False)
    except CoverageError as error:
        return BlockEstimate(key=block.key, layer=layer, reason=error.reason)
    return BlockEstimate(key=block.key, layer=layer, alone=alone, adds=adds)
