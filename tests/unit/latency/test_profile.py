import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgspec
import onnx
import pytest

from latency import BuildFailed, FingerprintMismatch, LatencyTable, Lowered, Safeguards, TableError, Workload, profile
from latency.backends.simulated import VirtualClock
from latency.lowered import overhead_onnx
from latency.monitor import Reading
from latency.profile import DriftChecked, Measured, Resumed, Retrying, TornLineDropped
from latency.sentinel import OFF


@pytest.fixture
def backend(kit):
    return kit.FakeBackend()


@pytest.fixture
def workloads(kit):
    blocks = [kit.block(a, b) for a in (8, 16) for b in (8, 16)]
    network = [kit.spec(8, 16), kit.spec(16, 8)]
    return [*blocks, Workload.network(network, overhead_onnx)]


@pytest.fixture
def run(kit, backend, workloads, tmp_path):
    def run(**changes):
        settings = {
            "workloads": workloads,
            "backend": backend,
            "out": tmp_path / "t.jsonl",
            "protocol": kit.QUICK,
            "lowering": "1",
            "safeguards": OFF,
            **changes,
        }
        return list(profile(settings.pop("workloads"), settings.pop("backend"), settings.pop("out"), **settings))

    return run


def keys_on_disk(path):
    return [msgspec.json.decode(line)["key"] for line in path.read_bytes().splitlines()[1:]]


def test_a_table_has_the_batch_of_its_workloads_and_goes_on_with_no_other(run, kit, tmp_path):
    def of(batch):
        return [Workload.block(kit.spec(8, 8), partial(overhead_onnx, batch), batch)]

    run(workloads=of(8))
    table = LatencyTable.load(tmp_path / "t.jsonl")
    assert (table.header.batch, [row.status for row in table.rows]) == (8, ["ok", "ok"])
    with pytest.raises(FingerprintMismatch, match="batch"):
        run(workloads=of(4))
    with pytest.raises(
        FingerprintMismatch, match=r"t\.jsonl has batch 8, wanted 1: measure another with `lathe profile SPACE "
    ):
        table.require(batch=1)
    assert " --batch 8 --out T" in table.header.measuring("T")


def test_each_workload_becomes_a_row_and_the_overhead_too(run, workloads, tmp_path):
    events = run(space="toy")
    table = LatencyTable.load(tmp_path / "t.jsonl")
    assert [row.key for row in table.rows] == ["overhead", *(work.key for work in workloads)]
    assert [row.kind for row in table.rows] == ["overhead", "block", "block", "block", "block", "network"]
    assert all(row.status == "ok" for row in table.rows)
    assert events == [Measured(row, i + 1, 6) for i, row in enumerate(table.rows)]
    assert (table.header.space, table.header.lowering, table.header.runtime.name) == ("toy", "1", "fake")
    assert table.rows[-1].blocks == tuple(work.key for work in (workloads[1], workloads[2]))


def test_a_network_is_named_by_its_blocks(kit):
    one, same, other = (Workload.network([kit.spec(8, b), kit.spec(b, 8)], lambda: b"") for b in (8, 8, 16))
    assert one.key == same.key != other.key
    assert one.key.startswith("network-")


def test_a_key_is_measured_once(run, workloads, backend, tmp_path):
    run(workloads=[*workloads, *workloads])
    assert sorted(keys_on_disk(tmp_path / "t.jsonl")) == sorted({"overhead", *(work.key for work in workloads)})
    assert len(backend.compiled) == 6


def test_what_is_ok_is_not_measured_again(run, backend, workloads, kit, tmp_path):
    run()
    before = (tmp_path / "t.jsonl").read_bytes()
    assert run() == [Resumed(6, 6)]
    assert (tmp_path / "t.jsonl").read_bytes() == before
    more = run(workloads=[*workloads, kit.block(24, 8)])
    assert more[0] == Resumed(6, 7)
    assert [event.row.key for event in more[1:]] == [kit.spec(24, 8).key]
    assert len(backend.compiled) == 7


def test_a_failure_is_a_row_and_the_rest_goes_on(run, backend, workloads, tmp_path):
    backend.build_fails, backend.run_fails = {workloads[0].key}, {workloads[1].key}
    run()
    rows = {row.key: row for row in LatencyTable.load(tmp_path / "t.jsonl").rows}
    built, ran = rows[workloads[0].key], rows[workloads[1].key]
    assert (built.status, built.error, built.samples_us) == ("build_failed", "unsupported operator Foo", ())
    assert (ran.status, ran.error) == ("run_failed", "out of memory")
    assert sum(row.status == "ok" for row in rows.values()) == 4


def test_a_failure_is_tried_again_by_the_next_run(run, backend, workloads, tmp_path):
    backend.build_fails = {workloads[0].key}
    run()
    backend.build_fails = set()
    events = run()
    assert events[0] == Resumed(5, 6)
    assert [(event.row.key, event.row.status, event.done) for event in events[1:]] == [(workloads[0].key, "ok", 6)]


def test_unstable_rows_are_tried_once_more_at_the_end(run, backend, workloads, tmp_path):
    shaky, hopeless = workloads[0].key, workloads[2].key
    backend.noise = {shaky: 0.5, hopeless: 0.5}
    compile_onnx = backend.compile

    def compile_and_calm(model):
        if backend.compiled.count(shaky):
            backend.noise.pop(shaky, None)
        return compile_onnx(model)

    backend.compile = compile_and_calm
    events = run()
    assert [type(event) for event in events] == [Measured] * 6 + [Retrying] + [Measured] * 2
    assert events[6] == Retrying(2)
    assert [event.row.key for event in events[7:]] == [shaky, hopeless]
    assert {event.done for event in events[7:]} == {6}
    rows = {row.key: row.status for row in LatencyTable.load(tmp_path / "t.jsonl").rows}
    assert (rows[shaky], rows[hopeless]) == ("ok", "unstable")


def test_a_table_measured_otherwise_is_refused_before_anything_is_measured(run, backend, kit, tmp_path):
    run()
    count = len(backend.compiled)
    with pytest.raises(FingerprintMismatch, match=r"lowering '1', wanted '2'"):
        run(lowering="2")
    other = kit.FakeBackend()
    other.device = msgspec.structs.replace(kit.CPU, threads=2)
    with pytest.raises(FingerprintMismatch, match=r"device\.threads 1, wanted 2"):
        run(backend=other)
    assert len(backend.compiled) == count
    assert other.compiled == []


def test_two_profilers_cannot_share_a_table(kit, backend, workloads, tmp_path):
    first = profile(workloads, backend, tmp_path / "t.jsonl", protocol=kit.QUICK, lowering="1", safeguards=OFF)
    next(first)
    with pytest.raises(TableError, match=rf"process {os.getpid()} is writing"):
        next(profile(workloads, backend, tmp_path / "t.jsonl", protocol=kit.QUICK, lowering="1", safeguards=OFF))
    first.close()  # as Ctrl-C does
    assert next(
        profile(workloads, backend, tmp_path / "t.jsonl", protocol=kit.QUICK, lowering="1", safeguards=OFF)
    ) == Resumed(1, 6)


def test_cut_anywhere_it_resumes_with_every_row_once(run, workloads, backend, tmp_path):
    run()
    path = tmp_path / "t.jsonl"
    data, keys = path.read_bytes(), keys_on_disk(path)
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    offsets = {0, 1, *(end + shift for end in ends for shift in (-2, -1, 0, 1)), *range(0, len(data), 97)}
    for size in sorted(offset for offset in offsets if offset <= len(data)):
        path.write_bytes(data[:size])
        backend.compiled.clear()
        events = run()
        kept = data[: data.rfind(b"\n", 0, size) + 1]
        assert path.read_bytes().startswith(kept)
        assert keys_on_disk(path) == keys
        assert len(backend.compiled) == len(keys) - max(0, kept.count(b"\n") - 1)
        assert any(isinstance(event, TornLineDropped) for event in events) == (size > 0 and size not in ends)
        LatencyTable.load(path)


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from conftest import QUICK, FakeBackend, FakeCompiled, block
from latency import profile
from latency.sentinel import OFF

class Slow(FakeCompiled):
    def run(self, count):
        time.sleep(5e-4)
        return super().run(count)

class SlowBackend(FakeBackend):
    def compile(self, model):
        with open(sys.argv[1] + ".log", "a") as log:
            log.write(model.key + "\\n")
        return Slow(30.0, 0.001, False)

works = [block(a, b) for a in range(8, 129, 8) for b in range(8, 129, 8)]
for event in profile(works, SlowBackend(), sys.argv[1], protocol=QUICK, lowering="1", safeguards=OFF):
    pass
"""


def test_killed_at_any_moment_nothing_is_lost_or_measured_twice(tmp_path):
    path, rng = tmp_path / "t.jsonl", random.Random(0)
    command = [sys.executable, "-P", "-c", KILLED, str(path), str(Path(__file__).parent)]
    kills, before = 0, b""
    while kills < 6:
        child = subprocess.Popen(command)
        deadline = time.monotonic() + 600
        while (
            (path.stat().st_size if path.exists() else 0) <= len(before)
            and child.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)  # until it has started to append
        time.sleep(rng.uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
        if child.wait() == 0:
            break
        kills += 1
        after = path.read_bytes()
        whole = before[: before.rfind(b"\n") + 1]
        assert after.startswith(whole)
        before = after
    subprocess.run(command, check=True)
    keys = keys_on_disk(path)
    assert len(keys) == len(set(keys)) == 1 + 16 * 16
    assert kills >= 3
    LatencyTable.load(path)
    measured = Path(f"{path}.log").read_text().splitlines()
    assert set(measured) == set(keys)
    assert len(measured) <= len(keys) + kills


def test_a_network_that_is_not_of_batch_1_is_a_failed_row(run, kit, tmp_path):
    model = onnx.load_from_string(overhead_onnx())
    for value, size in ((model.graph.input[0], 2), (model.graph.output[0], 2)):
        value.type.tensor_type.shape.dim[0].dim_value = size
    run(workloads=[Workload.block(kit.spec(8, 8), model.SerializeToString)])
    row = LatencyTable.load(tmp_path / "t.jsonl").rows[-1]
    assert (row.status, row.error) == (
        "build_failed",
        "input 'input' has shape (2, 1, 1, 1): the first dimension, the batch, must be 1: export with batch 1",
    )


def test_a_program_beside_the_onnx_reaches_the_backend(run, kit, backend):
    seen = []
    compile_model = backend.compile
    backend.compile = lambda model: (seen.append(model), compile_model(model))[1]
    run(workloads=[Workload.block(kit.spec(8, 8), lambda: Lowered(onnx=overhead_onnx(), program=b"p"))])
    assert [(model.key, model.program) for model in seen] == [("overhead", None), (kit.spec(8, 8).key, b"p")]


# drift


@pytest.fixture
def drifting(kit, backend):
    """The fake device in a time of its own, where everything takes `slow(seconds)` times as long."""
    clock = VirtualClock()

    class Compiled(type(backend.compile(Lowered(onnx=b"", key="x")))):
        def run(self, count):
            samples = []
            for us in super().run(count):
                samples.append(us * backend.slow(clock.now_us / 1e6))
                clock.advance(1e4)
            return samples

    def compile_model(model):
        key = model.key
        backend.compiled.append(key)
        if key in backend.build_fails:
            raise BuildFailed("unsupported operator Foo")
        return Compiled(backend.cost(key), 0.0001, False)

    backend.compiled.clear()
    backend.clock, backend.compile, backend.slow = clock, compile_model, lambda s: 1.0
    return backend


WATCH = Safeguards(sentinel_every=2, sentinel_every_s=1e9, patience_s=2.0)


def statuses(path):
    return [(row.kind, row.status) for row in LatencyTable.load(path).history]


def test_the_sentinel_stands_before_between_and_after_the_rows(run, drifting, workloads, tmp_path):
    events = run(safeguards=WATCH)
    kinds = [row.kind for row in LatencyTable.load(tmp_path / "t.jsonl").history]
    assert kinds == [
        "sentinel",
        "overhead",
        "block",
        "sentinel",
        "block",
        "block",
        "sentinel",
        "block",
        "network",
        "sentinel",
    ]
    assert [event.drift for event in events if isinstance(event, DriftChecked)] == [0.0] * 4
    (block,) = {row.blocks for row in LatencyTable.load(tmp_path / "t.jsonl").history if row.kind == "sentinel"}
    assert block == (workloads[2].key,)  # of middling size
    assert drifting.compiled.count(block[0]) == 2  # the sentinel is compiled once


def test_what_is_wrong_with_every_measurement_is_no_drift(run, drifting, tmp_path):
    compile_model = drifting.compile

    def without_graphs(model):
        compiled = compile_model(model)
        compiled.launch = lambda cuda_graph, spin_wait: "measured without a CUDA graph"
        return compiled

    drifting.compile = without_graphs
    run(safeguards=WATCH)
    assert {row.error for row in LatencyTable.load(tmp_path / "t.jsonl").rows if row.kind == "block"} == {
        "measured without a CUDA graph"
    }
    assert run(safeguards=WATCH) == [Resumed(6, 6)]


def test_time_calls_the_sentinel_too(run, drifting, tmp_path):
    run(safeguards=Safeguards(sentinel_every=1000, sentinel_every_s=0.05))
    assert statuses(tmp_path / "t.jsonl").count(("sentinel", "ok")) >= 6


def test_rows_that_were_measured_while_the_device_drifted_are_measured_again(run, drifting, workloads, tmp_path):
    drifting.slow = lambda s: 1.1 if 0.65 < s < 1.5 else 1.0
    events = run(safeguards=WATCH)
    watched = [event for event in events if isinstance(event, DriftChecked)]
    assert [(round(event.drift, 2), event.requeued) for event in watched] == [(0, 0), (0, 0), (0.1, 2), (0, 0), (0, 0)]
    table = LatencyTable.load(tmp_path / "t.jsonl")
    assert [row.error for row in table.history if row.status == "unstable"] == ["the device drifted by +10.0%"]
    for row in table.rows:
        key = row.blocks[0] if row.kind == "sentinel" else row.key
        assert row.median_us == pytest.approx(drifting.cost(key), rel=1e-3)
    assert [event.done for event in events if isinstance(event, Measured)] == [1, 2, 3, 4, 5, 6, 6, 6]
    assert run(safeguards=WATCH) == [Resumed(6, 6)]


def test_a_lasting_change_becomes_the_reference_and_is_said(run, drifting, tmp_path):
    drifting.slow = lambda s: 1.1 if s > 0.65 else 1.0
    events = run(safeguards=WATCH)
    assert sum(event.requeued for event in events if isinstance(event, DriftChecked)) == 2
    sentinels = [row for row in LatencyTable.load(tmp_path / "t.jsonl").history if row.kind == "sentinel"]
    assert [row.error for row in sentinels if row.error] == [
        "the device drifted by +10.0%",
        "the device stays at +10.0%: the new reference",
    ]
    assert sentinels[-1].status == "ok"


def test_a_row_is_measured_again_no_more_often_than_is_allowed(run, drifting, workloads, tmp_path):
    drifting.slow = lambda s: 1.0 + 0.1 * (int(s / 0.3) % 2)
    run(safeguards=Safeguards(sentinel_every=2, sentinel_every_s=1e9, patience_s=0.0, retries=3))
    measured = [row.key for row in LatencyTable.load(tmp_path / "t.jsonl").history if row.kind != "sentinel"]
    assert max(map(measured.count, measured)) <= 1 + 3


def test_killed_before_the_closing_sentinel_the_next_run_begins_with_it(run, drifting, tmp_path):
    run(safeguards=WATCH)
    path = tmp_path / "t.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert [type(event) for event in run(safeguards=WATCH)] == [Resumed, DriftChecked]
    path.write_bytes(b"".join(lines[:-1]))
    drifting.slow = lambda s: 1.1
    again = run(safeguards=WATCH)
    assert [type(event) for event in again] == [Resumed, DriftChecked, Measured, Measured, DriftChecked]
    assert again[1].requeued == 2


def test_another_block_is_the_sentinel_where_one_cannot_be_built_and_none_where_no_block_can(
    run, drifting, workloads, tmp_path
):
    drifting.build_fails = {workloads[2].key}
    run(safeguards=WATCH, out=tmp_path / "one.jsonl")
    assert LatencyTable.load(tmp_path / "one.jsonl").history[0].blocks == (workloads[3].key,)
    drifting.build_fails = {work.key for work in workloads}
    run(safeguards=WATCH, out=tmp_path / "none.jsonl")
    assert {kind for kind, _ in statuses(tmp_path / "none.jsonl")} == {"overhead", "block", "network"}


def test_the_monitor_is_read_between_windows_and_its_readings_are_in_the_row(run, backend, tmp_path):
    backend.monitor = SimpleNamespace(read=lambda: Reading(clocks={"sm_mhz": 1410.0}))
    run(safeguards=Safeguards(sentinel_every=0))
    assert {row.clocks["sm_mhz"] for row in LatencyTable.load(tmp_path / "t.jsonl").rows} == {1410.0}
    run(out=tmp_path / "off.jsonl")
    assert {tuple(row.clocks) for row in LatencyTable.load(tmp_path / "off.jsonl").rows} == {()}


# building ahead


@pytest.fixture
def ahead(backend):
    """The fake device with a compiler of its own, which notes when it is asked."""
    log = []

    class Builders:
        workers = 1

        def submit(self, model):
            log.append("submit")
            future = Future()
            if len(log) == 3:
                future.set_exception(BuildFailed("the builder died with exit code -11"))
            else:
                future.set_result(b"engine")
            return future

    def load(engine):
        assert engine == b"engine"
        log.append("load")
        return backend.compile(Lowered(onnx=b"", key="loaded"))

    backend.builders, backend.load, backend.log = lambda: contextlib.nullcontext(Builders()), load, log
    return backend


def test_what_comes_next_is_built_while_something_is_timed(run, ahead, tmp_path):
    run()
    assert ahead.log[:6] == ["submit", "submit", "submit", "load", "submit", "load"]
    assert (ahead.log.count("submit"), ahead.log.count("load")) == (6, 5)
    rows = LatencyTable.load(tmp_path / "t.jsonl").rows
    assert [row.status for row in rows] == ["ok", "ok", "build_failed", "ok", "ok", "ok"]
    assert rows[2].error == "the builder died with exit code -11"


def test_a_backend_that_cannot_build_apart_here_builds_in_its_turn(run, ahead):
    ahead.builders = lambda: None
    run()
    assert ahead.log == []
    assert len(ahead.compiled) == 6
