import msgspec
import pytest

from latency import FingerprintMismatch, LatencyError, LatencyTable, Row, TableWriter
from latency.merge import merge


@pytest.fixture
def parts(kit, tmp_path):
    def made(*tables, **fields):
        paths = []
        for index, rows in enumerate(tables):
            paths.append(tmp_path / f"{index}.jsonl")
            with TableWriter(paths[-1], kit.header(created=f"2026-01-0{9 - index}", **fields)) as writer:
                writer.append(*rows)
        return paths

    return made


def test_shards_become_one_table(kit, parts, tmp_path):
    overhead = kit.row("overhead", [1.0, 2.0, 3.0], kind="overhead")
    a, b = (kit.row(kit.key(name), [1.0, 2.0, 3.0]) for name in "ab")
    sentinel = kit.row("sentinel", [1.0, 1.0, 1.0], kind="sentinel", blocks=(a.key,))
    merged = merge(parts([sentinel, overhead, a, sentinel], [sentinel, overhead, b, sentinel]), tmp_path / "all.jsonl")
    assert [row.key for row in merged.rows] == ["sentinel", "overhead", a.key, b.key]
    assert len(merged.history) == 8
    assert merged.header.created == "2026-01-08"
    assert LatencyTable.load(tmp_path / "all.jsonl").sha256 == merged.sha256
    assert not (tmp_path / "all.jsonl.part").exists()


def test_a_part_that_does_not_end_with_a_good_sentinel_is_refused(kit, parts, tmp_path):
    a, b = (kit.row(kit.key(name), [1.0, 2.0, 3.0]) for name in "ab")
    sentinel = kit.row("sentinel", [1.0, 1.0, 1.0], kind="sentinel", blocks=(a.key,))
    drifted = msgspec.structs.replace(sentinel, error="the device stays at +9.0%: the new reference")
    transferred = Row(kind="block", key=kit.key("c"), status="transferred", median_us=2.0, low_us=1.0, high_us=3.0)
    whole = [sentinel, a, sentinel, transferred]
    for rows, why in (
        ([sentinel, b], "1 row was measured after the last sentinel"),
        ([sentinel, a, b], "2 rows were measured after the last sentinel"),
        ([sentinel, b, drifted], r"the last sentinel is not good: the device stays at \+9\.0%: the new reference"),
    ):
        paths = parts(whole, rows, space="toy")
        command = rf"`lathe profile toy --backend fake --protocol quick --out {paths[1]}`, with its other flags, such as --shard"
        with pytest.raises(LatencyError, match=rf"1\.jsonl is not finished: {why}; go on with it: {command}"):
            merge(paths, tmp_path / "all.jsonl")
        for path in paths:
            path.unlink()
    assert not (tmp_path / "all.jsonl").exists()


def test_what_is_merged_can_be_merged_again(kit, parts, tmp_path):
    """The row that counts stands before the last sentinel where a later part has a worse one of its key."""
    good, failed = (
        kit.row(kit.key("a"), [1.0, 2.0, 3.0]),
        Row(kind="block", key=kit.key("a"), status="run_failed", error="out of memory"),
    )
    sentinel = kit.row("sentinel", [1.0, 1.0, 1.0], kind="sentinel", blocks=(good.key,))
    first, second = parts([sentinel, good, sentinel], [sentinel, failed, sentinel])
    merged = merge([first, second], tmp_path / "x.jsonl")
    assert list(merged.history) == [sentinel, good, sentinel, sentinel, failed, good, sentinel]
    assert merge([tmp_path / "x.jsonl", first], tmp_path / "y.jsonl").rows == merged.rows


def test_a_torn_part_is_told(kit, parts, tmp_path):
    whole, torn = parts(
        [kit.row(kit.key("a"), [1.0, 2.0, 3.0])], [kit.row(kit.key(name), [1.0, 2.0, 3.0]) for name in "bc"]
    )
    torn.write_bytes(torn.read_bytes()[:-9])
    merged = merge([whole, torn], tmp_path / "all.jsonl")
    assert merged.warnings == (f"{torn}, line 3: the last line is torn and was dropped; profiling again measures it",)
    assert [row.key for row in merged.rows] == [kit.key("a"), kit.key("b")]


def test_a_good_row_supersedes_a_failed_one_whichever_comes_first(kit, parts, tmp_path):
    good, failed = (
        kit.row(kit.key("a"), [1.0, 2.0, 3.0]),
        Row(kind="block", key=kit.key("a"), status="run_failed", error="out of memory"),
    )
    assert merge(parts([good], [failed]), tmp_path / "x.jsonl").rows == [good]
    assert merge([tmp_path / "1.jsonl", tmp_path / "0.jsonl"], tmp_path / "y.jsonl").rows == [good]


def test_a_measured_row_supersedes_a_transferred_one_whichever_comes_first(kit, parts, tmp_path):
    measured = kit.row(kit.key("a"), [1.0, 2.0, 3.0], status="unstable")
    transferred = Row(kind="block", key=measured.key, status="transferred", median_us=2.0, low_us=1.0, high_us=3.0)
    assert merge(parts([measured], [transferred]), tmp_path / "x.jsonl").rows == [measured]
    assert merge([tmp_path / "1.jsonl", tmp_path / "0.jsonl"], tmp_path / "y.jsonl").rows == [measured]


def test_of_two_good_rows_the_later_parts_counts(kit, parts, tmp_path):
    one, two = kit.row(kit.key("a"), [1.0, 2.0, 3.0]), kit.row(kit.key("a"), [4.0, 5.0, 6.0])
    assert merge(parts([one], [two]), tmp_path / "x.jsonl").rows == [two]


def test_another_fingerprint_is_refused_and_named(kit, parts, tmp_path):
    first, second = parts([], [])
    other = msgspec.structs.replace(kit.CPU, threads=4)
    second.unlink()
    with TableWriter(second, kit.header(device=other)):
        pass
    with pytest.raises(
        FingerprintMismatch, match=r"1\.jsonl has device\.threads 4, wanted 1: merge tables of one fingerprint"
    ):
        merge([first, second], tmp_path / "all.jsonl")
    second.unlink()
    with TableWriter(
        second, kit.header(bundle_sha256="5" * 64)
    ):  # where the blocks came from does not change how long they take
        pass
    merge([first, second], tmp_path / "pooled.jsonl")
    second.unlink()
    with TableWriter(second, kit.header(settings={"optimization_level": "5"})):
        pass
    with pytest.raises(FingerprintMismatch, match=r"has settings\.optimization_level '5', wanted None"):
        merge([first, second], tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_what_cannot_be_merged(parts, tmp_path):
    with pytest.raises(LatencyError, match="nothing to merge"):
        merge([], tmp_path / "x")
    (path,) = parts([])
    with pytest.raises(LatencyError, match="exists and would be lost: choose another name$"):
        merge([path], path)
