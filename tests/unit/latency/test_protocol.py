import msgspec
import pytest

from latency import LatencyError, protocol


def test_named_protocols_differ_in_length_only():
    default, fast = protocol.get("default"), protocol.get("fast")
    assert (default.half_width, default.confidence) == (fast.half_width, fast.confidence) == (0.01, 0.95)
    assert fast.min_time_ms < default.min_time_ms
    assert fast.min_samples < default.min_samples


def test_trtexecs_protocols_are_its_defaults():
    ten, eleven = protocol.get("trtexec-10"), protocol.get("trtexec-11")
    assert (ten.warmup_ms, ten.min_samples, ten.min_time_ms, ten.max_time_ms) == (200.0, 10, 3000.0, 3000.0)
    assert (ten.cuda_graph, ten.spin_wait, eleven.cuda_graph, eleven.spin_wait) == (False, False, True, True)
    assert msgspec.structs.replace(ten, name="trtexec-11", cuda_graph=True, spin_wait=True) == eleven
    assert (protocol.FAST.cuda_graph, protocol.FAST.spin_wait) == (True, True)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        LatencyError, match=r"protocol 'slow' is unknown: choose one of default, fast, trtexec-10, trtexec-11"
    ):
        protocol.get("slow")
