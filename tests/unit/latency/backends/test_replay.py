import pytest

from latency import (
    BuildFailed,
    FingerprintMismatch,
    LatencyError,
    LatencyTable,
    Lowered,
    Recording,
    Row,
    RunFailed,
    TableWriter,
    Workload,
    backends,
    profile,
    protocol,
)
from latency.lowered import overhead_onnx
from latency.merge import merge


@pytest.fixture
def recorded(kit, tmp_path):
    path = tmp_path / "recorded.jsonl"
    with TableWriter(path, kit.header(precision="fp16", settings={"optimization_level": "3"})) as writer:
        writer.append(
            kit.row("overhead", [2.0, 2.01, 2.02], kind="overhead"),
            kit.row(kit.spec(8, 8).key, [10.0, 10.01, 10.02]),
            kit.row(kit.spec(8, 16).key, [19.99, 20.0, 20.01]),
            Row(kind="block", key=kit.key("unbuilt"), status="build_failed", error="no kernel"),
            Row(kind="block", key=kit.key("unrun"), status="run_failed", error="out of memory"),
        )
    return path


def test_a_table_stands_in_for_its_device(kit, recorded, tmp_path):
    backend = backends.get(f"replay:{recorded}")
    header = LatencyTable.load(recorded).header
    assert isinstance(backend, backends.Backend)
    assert (backend.device, backend.runtime, backend.precision, backend.settings) == (
        kit.CPU,
        header.runtime,
        "fp16",
        header.settings,
    )
    assert isinstance(backend, backends.Replays)
    works = [Workload.block(kit.spec(8, width), overhead_onnx) for width in (8, 16, 24)]
    list(profile(works, backend, tmp_path / "again.jsonl", protocol=protocol.FAST, lowering="1"))
    rows = {row.key: row for row in LatencyTable.load(tmp_path / "again.jsonl").rows}
    assert [rows[work.key].median_us for work in works[:2]] == [10.01, 20.0]
    assert rows["overhead"].status == "ok"
    assert (rows[works[2].key].status, "has no row" in rows[works[2].key].error) == ("build_failed", True)


def test_samples_come_in_their_order_over_and_over_and_take_their_time(kit, recorded):
    backend = backends.get(f"replay:{recorded}")
    with backend.compile(Lowered(onnx=b"", key=kit.spec(8, 8).key)) as compiled:
        assert isinstance(compiled, backends.Compiled)
        assert compiled.run(2) + compiled.run(2) == [10.0, 10.01, 10.02, 10.0]
    assert backend.clock() == 40_030


def test_what_failed_fails_again(kit, recorded):
    backend = backends.get(f"replay:{recorded}")
    with pytest.raises(BuildFailed, match="^no kernel$"):
        backend.compile(Lowered(onnx=b"", key=kit.key("unbuilt")))
    with (
        backend.compile(Lowered(onnx=b"", key=kit.key("unrun"))) as compiled,
        pytest.raises(RunFailed, match="^out of memory$"),
    ):
        compiled.run(1)
    with pytest.raises(BuildFailed, match="has no row '' to replay"):
        backend.compile(b"onnx")


def test_what_was_transferred_has_nothing_to_replay(kit, tmp_path):
    with TableWriter(tmp_path / "t.latency.jsonl", kit.header()) as writer:
        writer.append(Row(kind="block", key=kit.key("a"), status="transferred", median_us=2.0, low_us=1.0, high_us=3.0))
    with pytest.raises(BuildFailed, match="has no samples of .* to replay: it is transferred"):
        backends.get(f"replay:{tmp_path / 't.latency.jsonl'}").compile(Lowered(onnx=b"", key=kit.key("a")))


def test_another_precision_is_refused(recorded):
    with pytest.raises(LatencyError, match="is of precision 'fp16', not 'fp32'"):
        backends.get(f"replay:{recorded}", precision="fp32")


def test_a_replayed_table_says_what_it_is_and_when_it_was_recorded(kit, recorded, tmp_path):
    source, works = LatencyTable.load(recorded), [Workload.block(kit.spec(8, 8), overhead_onnx)]
    origins = {}
    for timing in (kit.QUICK, protocol.FAST):
        list(profile(works, backends.get(f"replay:{recorded}"), tmp_path / timing.name, protocol=timing, lowering="1"))
        header = LatencyTable.load(tmp_path / timing.name).header
        assert header.created == source.header.created == "2026-01-01"
        assert header.recording == Recording(sha256=source.sha256, created="2026-01-01", protocol=kit.QUICK)
        origins[timing.name] = header.origin
    replayed = f"replayed from a recording of 2026-01-01, sha256 {source.sha256[:16]}"
    assert origins["quick"] == replayed
    assert origins["fast"] == f"{replayed}; resampled by another protocol: name is 'fast', it was recorded with 'quick'"
    assert source.header.origin == ""
    with pytest.raises(FingerprintMismatch, match=r"has origin 'replayed from .*', wanted 'measured': merge tables"):
        merge([recorded, tmp_path / "quick"], tmp_path / "both.jsonl")
    with pytest.raises(FingerprintMismatch, match=r"has origin 'measured', wanted 'replayed from "):
        merge([tmp_path / "quick", recorded], tmp_path / "both.jsonl")
    simulated = backends.get("simulated:seed=1")
    with pytest.raises(
        FingerprintMismatch,
        match=r"has origin 'replayed from .*\d', wanted 'simulated: no such device exists': profile to",
    ):
        list(profile(works, simulated, tmp_path / "quick", protocol=kit.QUICK, lowering="1"))
    assert merge([tmp_path / "quick", tmp_path / "quick"], tmp_path / "twice.jsonl").header.origin == replayed


def test_a_replay_of_a_simulated_table_says_both(kit, tmp_path):
    works = [Workload.block(kit.spec(8, 8), overhead_onnx)]
    for backend, out in (("simulated:seed=1", "one"), (f"replay:{tmp_path / 'one'}", "two")):
        list(profile(works, backends.get(backend), tmp_path / out, protocol=kit.QUICK, lowering="1"))
    one, two = (LatencyTable.load(tmp_path / name).header.origin for name in ("one", "two"))
    assert one == "simulated: no such device exists"
    assert two.startswith(f"{one}; replayed from a recording of ")
