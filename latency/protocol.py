"""Named timing protocols: how to warm up, and when to stop sampling."""

from typing import Annotated

import msgspec
from msgspec import Meta

from latency.errors import LatencyError
from latency.values import TimeMs

Samples = Annotated[int, Meta(ge=1, le=1_000_000)]


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a latency is measured.

    After the fixed warm-up the device is watched for `settle_runs` runs or `settle_ms`, whichever comes first, so that
    a transient that lasts longer than the warm-up is seen; samples are taken from the stationary end of what was
    watched (`latency.measure.stationary_from`).

    Measuring ends when the floors are reached, the latency is stationary, and the interval of the median is narrow
    enough or `max_samples` were taken; or when `max_time_ms` have passed. A floor comes before any ceiling: a network
    that is slower than `max_time_ms / min_samples` is still sampled `min_samples` times. If there are more than
    `max_samples`, they are thinned evenly.

    Attributes:
        name: name of the protocol.
        warmup_ms: inferences run for this long before the device is watched.
        settle_runs: the watch ends after this many runs; 0 for no watch: every run after the fixed warm-up is a sample,
            as in other tools.
        settle_ms: the watch ends after this long.
        min_samples: floor of the number of samples.
        max_samples: ceiling of the number of samples.
        min_time_ms: floor of the time that the samples span.
        max_time_ms: ceiling of the time after the fixed warm-up.
        half_width: how far the interval of the median may reach to each side, relative to the median.
        confidence: of that interval.
        cuda_graph: whether an inference is launched on a GPU as one CUDA graph rather than kernel by kernel. Without
            effect on a CPU.
        spin_wait: whether the host polls for the end of an inference rather than sleeping until an interrupt. Without
            effect on a CPU.
    """

    name: str
    warmup_ms: TimeMs
    min_samples: Samples
    max_samples: Samples
    min_time_ms: TimeMs
    max_time_ms: TimeMs
    settle_runs: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    settle_ms: TimeMs = 0.0
    half_width: Annotated[float, Meta(gt=0, le=1000)] = 0.01
    confidence: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    cuda_graph: bool = True
    spin_wait: bool = True


DEFAULT = Protocol(
    name="default",
    warmup_ms=50.0,
    settle_runs=2500,
    settle_ms=1000.0,
    min_samples=50,
    max_samples=1000,
    min_time_ms=100.0,
    max_time_ms=3000.0,
)
FAST = Protocol(
    name="fast",
    warmup_ms=2.0,
    settle_runs=2500,
    settle_ms=500.0,
    min_samples=20,
    max_samples=300,
    min_time_ms=5.0,
    max_time_ms=1000.0,
)

# What trtexec calls "GPU Compute Time", by its defaults: CUDA events around each inference on a stream, transfers left
# out, one inference enqueued ahead of the one that is waited for, 200 ms of warm-up, then at least 10 iterations and 3
# s; the median (NVIDIA/TensorRT, samples/common/sampleInference.cpp: Iteration, inferenceLoop; sampleReporting.cpp).
# Version 10 enqueues kernel by kernel and waits on events with cudaEventBlockingSync; version 11 launches a CUDA graph
# and spins. Time ends both: they never judge the interval.
TRTEXEC_10 = Protocol(
    name="trtexec-10",
    warmup_ms=200.0,
    min_samples=10,
    max_samples=2000,
    min_time_ms=3000.0,
    max_time_ms=3000.0,
    cuda_graph=False,
    spin_wait=False,
)
TRTEXEC_11 = msgspec.structs.replace(TRTEXEC_10, name="trtexec-11", cuda_graph=True, spin_wait=True)


def get(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        LatencyError: the name is unknown; lists the known ones.
    """
    known = {protocol.name: protocol for protocol in (DEFAULT, FAST, TRTEXEC_10, TRTEXEC_11)}
    if name not in known:
        raise LatencyError(f"protocol {name!r} is unknown: choose one of {', '.join(known)}")
    return known[name]
