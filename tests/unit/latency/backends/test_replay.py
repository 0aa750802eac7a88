import pytest

from latency import BuildFailed, LatencyError, LatencyTable, Lowered, Row, RunFailed, TableWriter, Workload, backends, profile, protocol
from latency.lowered import overhead_onnx


@pytest.fixture
def recorded(kit, tmp_path):
    path = tmp_path / "recorded.jsonl"
    with TableWriter(path, kit.header(precision="fp16", settings={"optimization_level": "3"})) as writer:
        writer.append(
            kit.row("overhead", [2.0, 2.01, 2.02], kind="overhead"),
            kit.row(kit.spec(8, 8).key, [10.0, 10.01, 10.02]),
            kit.row(kit.spec(8, 16).key, [19.99, 20.0, 20.01]),
            Row(kind="block", key="unbuilt", status="build_failed", error="no kernel"),
            Row(kind="block", key="unrun", status="run_failed", error="out of memory"),
        )
    return path


def test_a_table_stands_in_for_its_device(kit, recorded, tmp_path):
    backend = backends.get(f"replay:{recorded}")
    header = LatencyTable.load(recorded).header
    assert isinstance(backend, backends.Backend)
    assert (backend.device, backend.runtime, backend.precision, backend.settings) == (kit.CPU, header.runtime, "fp16", header.settings)
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


def test_what_failed_fails_again(recorded):
    backend = backends.get(f"replay:{recorded}")
    with pytest.raises(BuildFailed, match="^no kernel$"):
        backend.compile(Lowered(onnx=b"", key="unbuilt"))
    with backend.compile(Lowered(onnx=b"", key="unrun")) as compiled, pytest.raises(RunFailed, match="^out of memory$"):
        compiled.run(1)
    with pytest.raises(BuildFailed, match="has no row '' to replay"):
        backend.compile(b"onnx")


def test_another_precision_is_refused(recorded):
    with pytest.raises(LatencyError, match="is of precision 'fp16', not 'fp32'"):
        backends.get(f"replay:{recorded}", precision="fp32")
