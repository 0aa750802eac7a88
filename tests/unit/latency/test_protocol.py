import pytest

from latency import LatencyError, protocol


def test_named_protocols_differ_in_length_only():
    default, fast = protocol.get("default"), protocol.get("fast")
    assert (default.half_width, default.confidence) == (fast.half_width, fast.confidence) == (0.01, 0.95)
    assert fast.min_time_ms < default.min_time_ms
    assert fast.min_samples < default.min_samples


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(LatencyError, match=r"protocol 'slow' is unknown: choose one of default, fast"):
        protocol.get("slow")
