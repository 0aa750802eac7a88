"""A table that was written once and is kept: later versions must read it."""

from pathlib import Path

import pytest

from latency import BlockSpec, CoverageError, LatencyTable

KEPT = Path(__file__).with_name("latency-table-1.latency.jsonl")


def conv(c_in, c_out):
    return BlockSpec.of("conv", attrs={"act": "relu", "kernel": 3, "stride": 1, "h": 32, "w": 32}, widths={"c_in": c_in, "c_out": c_out})


def test_version_1_is_read():
    table = LatencyTable.load(KEPT)
    header = table.header
    assert (header.schema, header.precision, header.batch, header.lowering, header.space) == ("latency-table/1", "fp32", 1, "1", "example")
    assert (header.device.name, header.device.isa, header.runtime.version) == ("Example CPU 3000", ("avx2", "fma"), "1.31.1")
    assert (header.protocol.name, header.protocol.half_width, header.created) == ("fast", 0.01, "2026-01-31")
    assert (header.protocol.cuda_graph, header.protocol.spin_wait, header.settings) == (True, True, {"example_setting": "1"})
    assert [row.kind for row in table.rows] == ["overhead", *["block"] * 7, "sentinel", "network"]
    rows = {row.key: row for row in table.rows}
    assert (rows["overhead"].samples_us, rows["overhead"].median_us) == ((2.376, 2.4, 2.424), 2.4)
    assert (rows[conv(8, 24).key].status, rows[conv(8, 24).key].error) == ("build_failed", "no kernel for Conv")
    assert rows[conv(16, 24).key].status == "run_failed"
    assert rows["sentinel"].clocks == {"cpu_mhz": 3000.0, "discarded_windows": 1.0}
    assert rows["sentinel"].blocks == (conv(8, 8).key,)
    assert [row.error for row in table.history if row.kind == "sentinel"] == ["the device drifted by +9.6%", ""]
    assert rows["network-8b1d2c3e4f5a6b7c"].blocks == (conv(8, 16).key, conv(16, 8).key)


def test_version_1_answers():
    table = LatencyTable.load(KEPT)
    assert table.lookup(conv(8, 8)).us == 11.5  # measured twice, the latest counts
    assert table.lookup(conv(24, 8)).us == 20.0
    assert table.predict([conv(8, 16), conv(16, 8)]).us == pytest.approx(17.8 + 17.8 - 2.4)
    with pytest.raises(CoverageError, match="build_failed"):
        table.lookup(conv(8, 24))
