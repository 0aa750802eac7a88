"""Split a space over several equal devices: each measures a part, and the tables are merged afterwards."""

import re
from collections.abc import Sequence

from latency.errors import LatencyError
from latency.profile import Workload


def shard(workloads: Sequence[Workload], part: str) -> list[Workload]:
    """Return one part of the workloads.

    All parts together hold each key once; their counts of each kind differ by at most one.

    Neighbours go to different parts, so that each part has blocks of every family and size, and about the same amount
    of work.

    Args:
        workloads: workloads of all parts, the same on each device; of several with one key, the first is used.
        part: number of the part and of all parts: "1/4" to "4/4".

    Raises:
        LatencyError: `part` is invalid.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
    if match is None:
        raise LatencyError(
            f"shard {part!r} is not understood: --shard takes I/N, such as 1/4, 2/4, 3/4 and 4/4 on four devices"
        )
    index, count = int(match[1]), int(match[2])
    if count < 1:
        raise LatencyError(f"shard {part!r} is of no parts: --shard takes I/N with N of at least 1, such as 1/4")
    if not 1 <= index <= count:
        raise LatencyError(f"shard {part!r} does not exist: --shard I/{count} takes I from 1 to {count}")
    unique: dict[str, Workload] = {}
    for work in workloads:
        unique.setdefault(work.key, work)
    ordered = sorted(
        unique.values(), key=lambda work: work.kind
    )  # stable: one kind after another, each in its original order
    return ordered[index - 1 :: count]
