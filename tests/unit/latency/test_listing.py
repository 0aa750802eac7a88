import pytest

from latency import LatencyError, LatencyTable, Row
from latency.listing import families, flat, names, titled


@pytest.fixture
def table(kit):
    rows = [
        kit.row("overhead", [2.0], kind="overhead"),
        kit.row(kit.spec(16, 8).key, [3.0]),
        kit.row(kit.spec(8, 8).key, [1.0]),
        Row(kind="block", key="other(h=1,w=1)[c_in=4]", status="build_failed", error="no"),
        kit.row("sentinel", [2.0], kind="sentinel"),
        kit.row("network-1", [9.0], kind="network", blocks=("a", "b")),
    ]
    return LatencyTable(kit.header(), rows, path="t")


def test_rows_are_listed_by_family_and_width(table, kit):
    found = families(table)
    assert [family.name for family in found] == [
        "empty network",
        kit.spec(8, 8).family,
        "other(h=1,w=1)",
        "whole networks",
    ]
    assert [(widths, row.median_us) for widths, row in found[1].rows] == [((8, 8), 1.0), ((16, 8), 3.0)]
    assert names(table) == {"overhead": "empty network", "network-1": "network 1 (2 blocks)"}


def test_families_are_chosen_by_a_part_of_their_name(table, kit):
    assert [family.title for family in families(table, "OTHER @1")] == ["other @1x1"]
    with pytest.raises(
        LatencyError, match="--family 'none' is in no name of a family of t: choose of 'empty network', .*'other @1x1'"
    ):
        families(table, "none")


def test_a_sheet_has_one_head_for_all_families(table, kit):
    head, *lines = flat(families(table))
    assert {len(line) for line in lines} == {len(head)}
    failed = dict(zip(head, lines[3], strict=True))
    assert (failed["c_in"], failed["c_out"], failed["median_us"], failed["status"]) == (4, "", "", "build_failed")


def test_a_key_that_is_not_of_a_block_is_its_own_title(kit):
    assert titled("overhead") == ("overhead", "")
    assert titled("head(h=4,w=4)[c_in=8,c_out=2]") == ("head @4x4", "8 → 2")
