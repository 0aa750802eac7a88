from typing import get_args

import msgspec
import pytest

from latency import LatencyTable, Row
from latency.check import Problem, check, fix


@pytest.fixture
def look(kit):
    def made(rows, expected=(), **fields):
        sentinel = kit.row("sentinel", [1.0, 1.0, 1.0], kind="sentinel", blocks=("b",))
        return check(LatencyTable(kit.header(), [sentinel, *rows, sentinel], **fields), expected)

    return made


def block(kit, c_in, c_out, us, **fields):
    return kit.row(kit.spec(c_in, c_out).key, [us * 0.99, us, us * 1.01], **fields)


def test_nothing_is_found_in_a_sound_table(kit, look):
    rows = [block(kit, 8, 8, 10.0), block(kit, 8, 16, 10.05), block(kit, 16, 8, 9.95)]
    assert look(rows, [row.key for row in rows]) == []


def test_holes(kit, look):
    failed = Row(kind="block", key=kit.spec(8, 8).key, status="build_failed", error="no kernel")
    missing = kit.spec(24, 8).key
    found = look([failed], [failed.key, missing, missing], warnings=["a torn line"])
    assert [(finding.problem, finding.key, finding.words) for finding in found] == [
        ("failed", failed.key, "build_failed: no kernel"),
        ("missing", missing, "not in the table"),
        ("torn", "", "a torn line"),
    ]


def test_doubts_about_one_row(kit, look):
    found = look([block(kit, 8, 8, 10.0, status="unstable", error="measured without a CUDA graph")])
    assert [(finding.problem, finding.words) for finding in found] == [
        ("unstable", "the median is uncertain by 1.0%"),
        ("not as asked", "measured without a CUDA graph"),
    ]


def test_a_wider_block_that_is_faster_beyond_the_noise(kit, look):
    within, beyond = [block(kit, 8, 8, 10.0), block(kit, 8, 16, 9.72)], [block(kit, 8, 8, 10.0), block(kit, 8, 16, 9.0)]
    assert look(within) == []
    noisy = kit.row(kit.spec(8, 16).key, [8.0, 9.0, 9.95])
    assert [finding.problem for finding in look([block(kit, 8, 8, 10.0), noisy])] == []
    (found,) = look(beyond)
    assert (found.problem, found.key) == ("non-monotone", kit.spec(8, 16).key)
    assert found.words == "10.0% faster than c_out=8, which is narrower"


def test_only_blocks_that_differ_in_one_width_are_compared(kit, look):
    assert look([block(kit, 8, 16, 10.0), block(kit, 16, 8, 9.0)]) == []


def test_drift(kit):
    good = kit.row("sentinel", [1.0, 1.0, 1.0], kind="sentinel", blocks=("b",))
    bad = msgspec.structs.replace(good, status="unstable", error="the device drifted by +9.0%")
    moved = msgspec.structs.replace(good, error="the device stays at +9.0%: the new reference")
    row = block(kit, 8, 8, 10.0)
    table = LatencyTable(kit.header(), [good, row, bad, moved, block(kit, 8, 16, 11.0)])
    assert [(finding.problem, finding.key, finding.words) for finding in check(table)] == [
        ("drift", "", moved.error),
        ("drift", "", "no sentinel was measured after the last 1 rows: profiling again does it"),
        ("drift", row.key, "it was measured while the device drifted: profiling again measures it"),
    ]


def test_a_table_without_sentinels_says_so(kit):
    (found,) = check(LatencyTable(kit.header(), [block(kit, 8, 8, 10.0)]))
    assert found.problem == "no sentinel"


def test_blocks_that_interpolation_covers_are_a_doubt_and_no_hole(kit):
    specs = [kit.spec(a, b) for a in range(8, 65, 8) for b in range(8, 65, 8)]
    rows = [kit.row(spec.key, [10.0 + spec.width("c_in") * spec.width("c_out") / 64]) for spec in specs[::3]]
    corners = {
        spec.key: kit.row(spec.key, [10.0 + spec.width("c_in") * spec.width("c_out") / 64])
        for spec in (specs[7], specs[56])
    }
    table = LatencyTable(kit.header(), [*rows, *corners.values()])
    found = check(table, [*(spec.key for spec in specs), kit.spec(72, 8).key])
    assert [finding.key for finding in found if finding.problem == "missing"] == [kit.spec(72, 8).key]
    (words,) = (finding.words for finding in found if finding.problem == "interpolated")
    assert "blocks are interpolated between measured ones" in words


def test_findings_are_sorted_by_problem_family_and_width_and_each_kind_has_something_to_do(kit):
    rows = [kit.row(kit.spec(8, 8).key, [1.0])]
    absent = [kit.spec(16, 8).key, kit.spec(8, 16).key, "other(h=1,w=1)[c_in=100]", "other(h=1,w=1)[c_in=9]"]
    found = check(LatencyTable(kit.header(), rows), absent)
    missing = [finding.key for finding in found if finding.problem == "missing"]
    assert missing == [absent[1], absent[0], absent[3], absent[2]]
    assert [finding.problem for finding in found] == ["missing"] * 4 + ["no sentinel"]
    for problem in get_args(Problem):
        assert "{" not in fix(problem, "again", "new")
    assert fix("failed", "AGAIN", "NEW") == "`AGAIN` tries them again"
