"""A space over several equal devices: each measures a part, and the tables are merged afterwards."""

import re
from collections.abc import Sequence

from latency.errors import LatencyError
from latency.profile import Workload


def shard(workloads: Sequence[Workload], part: str) -> list[Workload]:
    """One part of the workloads; the parts of one whole hold each key once, and of each kind equally many, but for one.

    Neighbours go to different parts, so each gets blocks of every family and size, about equally much work.

    Args:
        workloads: what all parts together measure, the same on each device; of several with one key the first counts.
        part: which part of how many: "1/4" to "4/4".

    Raises:
        LatencyError: that is no such part.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
    if match is None:
        raise LatencyError(f"shard {part!r} is not understood: --shard takes I/N, such as 1/4, 2/4, 3/4 and 4/4 on four devices")
    index, count = int(match[1]), int(match[2])
    if count < 1:
        raise LatencyError(f"shard {part!r} is of no parts: --shard takes I/N with N of at least 1, such as 1/4")
    if not 1 <= index <= count:
        raise LatencyError(f"shard {part!r} does not exist: --shard I/{count} takes I from 1 to {count}")
    unique: dict[str, Workload] = {}
    for work in workloads:
        unique.setdefault(work.key, work)
    ordered = sorted(unique.values(), key=lambda work: work.kind)  # stable: one kind after the other, each in its order
    return ordered[index - 1 :: count]
