"""Named timing protocols: how long to warm up, and when enough has been sampled."""

import msgspec

from latency.errors import LatencyError


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a latency is measured.

    Sampling ends when the interval of the median is narrow enough and both floors are reached, or at a ceiling. The floor of samples comes
    before the ceiling of time: a network that is slower than `max_time_ms / min_samples` is still sampled `min_samples` times.

    Attributes:
        name: what a person calls it.
        warmup_ms: inferences run for so long before the first sample.
        min_samples: floor.
        max_samples: ceiling.
        min_time_ms: floor of the time spent sampling.
        max_time_ms: ceiling of it.
        half_width: the interval of the median may reach so far to each side, relative to the median.
        confidence: of that interval.
    """

    name: str
    warmup_ms: float
    min_samples: int
    max_samples: int
    min_time_ms: float
    max_time_ms: float
    half_width: float = 0.01
    confidence: float = 0.95


DEFAULT = Protocol(name="default", warmup_ms=50.0, min_samples=50, max_samples=1000, min_time_ms=100.0, max_time_ms=1000.0)
FAST = Protocol(name="fast", warmup_ms=2.0, min_samples=20, max_samples=300, min_time_ms=5.0, max_time_ms=100.0)


def get(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        LatencyError: there is none of that name; lists the known ones.
    """
    known = {protocol.name: protocol for protocol in (DEFAULT, FAST)}
    if name not in known:
        raise LatencyError(f"protocol {name!r} is unknown: choose one of {', '.join(known)}")
    return known[name]
