"""A table that was written once and is kept: later versions must read it."""

from pathlib import Path

import pytest

from latency import BlockSpec, CoverageError, LatencyTable, TableError, TableWriter

KEPT = Path(__file__).with_name("latency-table-1.latency.jsonl")
KEPT_2 = Path(__file__).with_name("latency-table-2.latency.jsonl")
KEPT_3 = Path(__file__).with_name("latency-table-3.latency.jsonl")


def conv(c_in, c_out):
    return BlockSpec.of(
        "conv", attrs={"act": "relu", "kernel": 3, "stride": 1, "h": 32, "w": 32}, widths={"c_in": c_in, "c_out": c_out}
    )


def test_version_1_is_read():
    table = LatencyTable.load(KEPT)
    header = table.header
    assert (header.schema, header.precision, header.batch, header.lowering, header.space) == (
        "latency-table/3",
        "fp32",
        1,
        "1",
        "example",
    )
    assert (header.device.name, header.device.isa, header.runtime.version) == (
        "Example CPU 3000",
        ("avx2", "fma"),
        "1.31.1",
    )
    assert (header.protocol.name, header.protocol.half_width, header.created) == ("fast", 0.01, "2026-01-31")
    assert (header.protocol.cuda_graph, header.protocol.spin_wait, header.settings) == (
        True,
        True,
        {"example_setting": "1"},
    )
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


def test_version_1_gets_the_defaults_of_what_is_new_and_is_not_continued():
    table = LatencyTable.load(KEPT)
    assert (table.header.recording, table.header.origin, table.header.protocol.settle_runs) == (None, "", 0)
    assert {(row.p90_us, row.p99_us, row.reason) for row in table.rows} == {(None, None, "")}  # three samples each
    before = KEPT.read_bytes()
    with pytest.raises(TableError, match=r"is of the earlier format latency-table/1: .* profile to another file"):
        TableWriter(KEPT, table.header)
    assert KEPT.read_bytes() == before


def test_version_2_is_read():
    table = LatencyTable.load(KEPT_2)
    header, rows = table.header, {row.key: row for row in table.rows}
    assert (header.schema, header.protocol.settle_runs, header.protocol.settle_ms) == ("latency-table/3", 2500, 500.0)
    assert header.recording is not None
    assert (header.recording.sha256, header.recording.created) == ("0123456789abcdef" * 4, "2026-01-31")
    assert header.recording.protocol.settle_runs == 0
    many, modes = rows[conv(8, 16).key], rows[conv(16, 8).key]
    assert (len(many.samples_us), many.median_us, many.p90_us, many.p99_us) == (700, 19.999, 20.052, 20.085)
    assert (modes.status, modes.p90_us, modes.p99_us) == ("unstable", 21.0, None)
    assert modes.reason == "the median is between two modes: 15.0 us (50% of the samples) and 21.0 us"
    assert rows["sentinel"].clocks == {"cpu_mhz": 3000.0, "discarded_windows": 1.0}
    assert table.lookup(conv(8, 8)).us == 11.5
    assert header.like == ()
    with pytest.raises(
        TableError, match=r"is of the earlier format latency-table/2: .* rows of latency-table/3 cannot be appended"
    ):
        TableWriter(KEPT_2, header)


def test_version_3_is_read():
    table = LatencyTable.load(KEPT_3)
    (old,) = table.header.like
    assert (old.sha256, old.device.name, old.device.threads, old.runtime.name) == (
        "0123456789abcdef" * 4,
        "Example CPU 2000",
        2,
        "onnxruntime",
    )
    assert (old.precision, old.origin) == ("fp32", "simulated: no such device exists")
    assert [row.status for row in table.history] == ["ok"] * 4 + ["transferred"] * 2 + ["ok"]
    assert {row.key: row.status for row in table.rows}[conv(16, 8).key] == "ok"
    found = table.lookup(conv(24, 8))
    assert (found.source, found.us, found.low_us, found.high_us) == ("transferred", 20.25, 18.0, 22.5)
    assert table.transferred.startswith(
        "1 of 5 blocks are transferred from Example CPU 2000 (onnxruntime, fp32, 2 threads; sha256 0123456789abcdef)"
    )
