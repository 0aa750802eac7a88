import msgspec
import pytest

from latency import (
    BlockSpec,
    CoverageError,
    FingerprintMismatch,
    LatencyError,
    LatencyTable,
    TableWriter,
    Workload,
    profile,
)
from latency.anchored import Anchored, describe_tables, load_old_tables, profile_like, prove, require_flags
from latency.check import check
from latency.coverage import held_out
from latency.lowered import overhead_onnx
from latency.profile import Measured, Resumed
from latency.sentinel import Safeguards

WIDTHS = [(a, b) for a in range(8, 161, 8) for b in range(8, 97, 8)]


def old_us(key):
    spec = BlockSpec.parse(key)
    return 5.0 + spec.width("c_in") * spec.width("c_out") / 500


def new_us(key):
    return 2.0 if key == "overhead" else 60.0 if key.startswith("network") else 0.4 * old_us(key) ** 1.2 + 1.0


@pytest.fixture
def works(kit):
    return [*(kit.block(a, b) for a, b in WIDTHS), Workload.network([kit.spec(8, 16), kit.spec(16, 8)], overhead_onnx)]


@pytest.fixture
def old(kit, works):
    rows = [kit.row(work.key, [old_us(work.key)]) for work in works if work.kind == "block"]
    return LatencyTable(kit.header(), rows, sha256="0" * 64, path="old.latency.jsonl")


def run(path, kit, works, old, backend=None, anchors=40):
    def measure(some):
        safeguards = Safeguards(sentinel_every=20, patience_s=0.0)
        backend_ = backend or kit.FakeBackend(new_us)
        return profile(
            some, backend_, path, protocol=kit.QUICK, lowering="1", safeguards=safeguards, like=describe_tables([old])
        )

    return profile_like(works, [old], path, measure, anchors=anchors)


def test_few_blocks_are_measured_and_the_others_transferred_with_intervals(tmp_path, kit, works, old):
    events = list(run(tmp_path / "t.jsonl", kit, works, old))
    table = LatencyTable.load(tmp_path / "t.jsonl")
    blocks = [row for row in table.rows if row.kind == "block"]
    assert sum(row.status == "ok" for row in blocks) == 40
    others = [row for row in blocks if row.status == "transferred"]
    assert len(others) == len(WIDTHS) - 40
    assert max(abs(row.median_us / new_us(row.key) - 1) for row in others) < 0.05
    assert sum(row.low_us <= new_us(row.key) <= row.high_us for row in others) > 0.9 * len(others)
    assert [row.kind for row in table.rows if row.measured and row.kind != "block"] == [
        "sentinel",
        "overhead",
        "network",
    ]
    (done,) = (event for event in events if isinstance(event, Anchored))
    assert (done.measured, done.transferred, done.proof.held_out) == (40, len(others), 8)
    assert done.proof.mean_error < 0.05
    assert done.proof == prove(table)
    (source,) = table.header.like
    assert (source.sha256, source.device.name, source.origin) == ("0" * 64, "Test CPU", "")


def test_a_transferred_block_is_looked_up_with_its_interval_and_a_prediction_says_so(tmp_path, kit, works, old):
    list(run(tmp_path / "t.jsonl", kit, works, old))
    table = LatencyTable.load(tmp_path / "t.jsonl")
    row = next(row for row in table.rows if row.status == "transferred")
    found = table.lookup(spec := BlockSpec.parse(row.key))
    assert (found.source, found.us, found.low_us, found.high_us) == (
        "transferred",
        row.median_us,
        row.low_us,
        row.high_us,
    )
    whole = table.predict([spec])
    assert (
        "200 of 240 blocks are transferred from Test CPU (fake, fp32, 1 thread; sha256 0000000000000000)"
        in whole.origin
    )
    assert whole.high_us - whole.us > found.high_us - found.us
    assert not table.predict(
        [BlockSpec.parse(next(row.key for row in table.rows if row.kind == "block" and row.measured))]
    ).origin
    (said,) = (
        finding
        for finding in check(table, [work.key for work in works if work.kind == "block"])
        if finding.problem == "transferred"
    )
    assert "8 held-out ones" in said.words
    between = table.lookup(kit.spec(12, 12))
    assert between.source == "interpolated"
    assert between.low_us < new_us(kit.spec(12, 12).key) < between.high_us


def test_held_out_blocks_are_predicted_before_they_are_measured(tmp_path, kit, works, old):
    list(run(tmp_path / "t.jsonl", kit, works, old))
    table = LatencyTable.load(tmp_path / "t.jsonl")
    held = held_out([BlockSpec.parse(row.key) for row in table.rows if row.kind == "block"])
    both = [row.key for row in table.rows if row.measured and row.key in held]
    assert len(both) == 8
    for key in both:
        assert [row.status for row in table.history if row.key == key] == ["transferred", "ok"]


def test_the_same_call_goes_on_wherever_it_was_stopped(tmp_path, kit, works, old):
    list(run(tmp_path / "whole.jsonl", kit, works, old))
    path = tmp_path / "t.jsonl"
    for _ in range(20):
        events, count = run(path, kit, works, old), 0
        for event in events:
            count += isinstance(event, Measured)
            if count == 5:
                break
        events.close()
        if count < 5:
            break
    size = path.stat().st_size
    first, *more = run(path, kit, works, old)
    assert first == Resumed(42, 42)
    assert not [event for event in more if isinstance(event, Measured)]
    assert path.stat().st_size == size
    tables = [LatencyTable.load(name) for name in (path, tmp_path / "whole.jsonl")]
    statuses = [{row.key: row.status for row in table.rows} for table in tables]
    assert statuses[0] == statuses[1]


def test_more_anchors_keep_those_that_are_measured(tmp_path, kit, works, old):
    path = tmp_path / "t.jsonl"
    list(run(path, kit, works, old, anchors=20))
    before = {row.key for row in LatencyTable.load(path).rows if row.measured}
    events = list(run(path, kit, works, old, anchors=40))
    after = {row.key for row in LatencyTable.load(path).rows if row.measured}
    assert before < after
    assert len(after) - len(before) == 20 == sum(isinstance(event, Measured) for event in events)


def test_an_anchor_that_fails_stays_a_hole_and_is_tried_once_a_call(tmp_path, kit, works, old):
    path = tmp_path / "t.jsonl"
    list(run(path, kit, works, old))
    failing = next(row.key for row in LatencyTable.load(path).rows if row.kind == "block" and row.measured)
    backend = kit.FakeBackend(new_us)
    backend.build_fails = {failing}
    list(run(tmp_path / "f.jsonl", kit, works, old, backend))
    table = LatencyTable.load(tmp_path / "f.jsonl")
    assert next(row.status for row in table.rows if row.key == failing) == "build_failed"
    assert backend.compiled.count(failing) <= 2  # once as what may be the sentinel
    backend.build_fails = {work.key for work in works}
    with pytest.raises(
        LatencyError, match=r"^0 anchors could be measured, .*: block .* is build_failed \(unsupported operator Foo\)"
    ):
        list(run(tmp_path / "g.jsonl", kit, works, old, backend))


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        (3, "--anchors 3 is too few: each of the 1 families of blocks needs one, the fit 5"),
        (241, "--anchors 241 is more than the 240"),
    ],
)
def test_too_few_or_too_many_anchors_are_refused(tmp_path, kit, works, old, anchors, words):
    with pytest.raises(LatencyError, match=words):
        next(run(tmp_path / "t.jsonl", kit, works, old, anchors=anchors))
    assert not (tmp_path / "t.jsonl").exists()


def test_an_old_table_must_cover_the_space(tmp_path, kit, works, old):
    few = LatencyTable(kit.header(space="other"), old.rows[:3], path="few.latency.jsonl")
    with pytest.raises(
        CoverageError,
        match=r"--like few.latency.jsonl, of the space other, does not cover the space to profile: block conv",
    ):
        next(run(tmp_path / "t.jsonl", kit, works, few))


def test_old_tables_are_of_this_lowering_and_may_be_of_another_precision(tmp_path, kit):
    with TableWriter(tmp_path / "a.jsonl", kit.header(precision="fp16", lowering="7")) as writer:
        writer.append(kit.row(kit.key("conv"), [1.0]))
    assert load_old_tables([tmp_path / "a.jsonl"], lowering="7")[0].header.precision == "fp16"
    with pytest.raises(FingerprintMismatch, match=r"has lowering '7', wanted '8': measure the old device anew"):
        load_old_tables([tmp_path / "a.jsonl"], lowering="8")
    with pytest.raises(LatencyError, match="one table twice"):
        load_old_tables([tmp_path / "a.jsonl"] * 2, lowering="7")


def test_an_old_table_that_is_not_measured_is_said_to_be(kit, old):
    simulated = LatencyTable(
        kit.header(runtime=msgspec.structs.replace(kit.FakeBackend.runtime, name="simulated")), [], sha256="1" * 64
    )
    assert "simulated: no such device exists" in describe_tables([old, simulated])[1].words
    assert "which is not measured" not in describe_tables([old])[0].words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (((), 60, "1/1"), "--anchors 60 is of --like"),
        ((("t",), 0, "1/1"), "--anchors must be 1 or more"),
        ((("t",), None, "1/2"), "--shard 1/2 is for measuring all"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words):
    with pytest.raises(LatencyError, match=words):
        require_flags(*flags)
