"""Named timing protocols: how long to warm up, and when enough has been sampled."""

import msgspec

from latency.errors import LatencyError


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a latency is measured.

    Sampling ends when both floors are reached and the interval of the median is narrow enough, or a ceiling is reached too. So a floor
    comes before any ceiling: a network that is slower than `max_time_ms / min_samples` is still sampled `min_samples` times, and of one
    that is faster than `min_time_ms / max_samples` every second, fourth... sample is kept, spread over the whole time.

    Attributes:
        name: what a person calls it.
        warmup_ms: inferences run for so long before the first sample.
        min_samples: floor.
        max_samples: ceiling.
        min_time_ms: floor of the time spent sampling.
        max_time_ms: ceiling of it.
        half_width: the interval of the median may reach so far to each side, relative to the median.
        confidence: of that interval.
        cuda_graph: whether a GPU is handed an inference as one CUDA graph, rather than kernel by kernel. A CPU knows no difference.
        spin_wait: whether the host polls for the end of an inference, rather than sleeps until an interrupt. A CPU knows no difference.
    """

    name: str
    warmup_ms: float
    min_samples: int
    max_samples: int
    min_time_ms: float
    max_time_ms: float
    half_width: float = 0.01
    confidence: float = 0.95
    cuda_graph: bool = True
    spin_wait: bool = True


DEFAULT = Protocol(name="default", warmup_ms=50.0, min_samples=50, max_samples=1000, min_time_ms=100.0, max_time_ms=1000.0)
FAST = Protocol(name="fast", warmup_ms=2.0, min_samples=20, max_samples=300, min_time_ms=5.0, max_time_ms=100.0)

# What trtexec calls "GPU Compute Time", by its defaults: CUDA events around each inference on a stream, transfers left out, one inference
# enqueued ahead of the one that is waited for, 200 ms of warm-up, then at least 10 iterations and 3 s; the median (NVIDIA/TensorRT,
# samples/common/sampleInference.cpp: Iteration, inferenceLoop; sampleReporting.cpp). Version 10 enqueues kernel by kernel and waits on
# events with cudaEventBlockingSync; version 11 launches a CUDA graph and spins. Time ends both: they never judge the interval.
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
    """A protocol by its name.

    Raises:
        LatencyError: there is none of that name; lists the known ones.
    """
    known = {protocol.name: protocol for protocol in (DEFAULT, FAST, TRTEXEC_10, TRTEXEC_11)}
    if name not in known:
        raise LatencyError(f"protocol {name!r} is unknown: choose one of {', '.join(known)}")
    return known[name]
