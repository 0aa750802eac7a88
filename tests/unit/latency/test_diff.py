import msgspec
import numpy as np
import pytest

from latency import LatencyError, LatencyTable, Recording
from latency.diff import diff


@pytest.fixture
def table(kit):
    def made(factor=1.0, noise=0.002, seed=0, keys="abcdef", samples=60, **fields):
        rng = np.random.default_rng(seed)
        rows = []
        for index, key in enumerate(keys):
            values = 10.0 * (index + 1) * factor * (1 + noise * rng.standard_normal(samples))
            rows.append(kit.row(key, [round(float(value), 3) for value in values], **fields))
        return LatencyTable(kit.header(), rows, path="a table")

    return made


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [
        (1.0, 0.002, "SAME"),
        (0.9, 0.002, "FASTER"),
        (1.1, 0.002, "SLOWER"),
        (1.01, 0.02, "UNSURE"),
        (1.05, 0.4, "UNSURE"),
    ],
)
def test_verdicts(table, factor, noise, verdict):
    found = diff(table(noise=noise), table(factor, noise, seed=1))
    assert found.overall.verdict == verdict
    assert found.overall.ratio == pytest.approx(factor, rel=3 * noise)
    assert found.overall.low <= found.overall.ratio <= found.overall.high
    assert [row.key for row in found.rows] == list("abcdef")
    if verdict != "UNSURE":
        assert {row.verdict for row in found.rows} == {verdict}


def test_a_small_change_of_all_rows_is_a_change_though_that_of_one_would_be_none(table):
    found = diff(table(), table(0.98))
    assert (found.overall.verdict, {row.verdict for row in found.rows}) == ("FASTER", {"SAME"})


def test_a_table_is_the_same_as_itself_and_answers_alike_each_time(table):
    assert diff(table(), table()) == diff(table(), table())
    assert diff(table(), table()).overall.ratio == 1.0


@pytest.mark.parametrize("noise", [0.002, 0.05, 0.5])
def test_a_table_is_the_same_as_itself_in_every_row_however_noisy_it_is(table, noise):
    found = diff(table(noise=noise), table(noise=noise))
    assert {(row.verdict, row.ratio, row.low, row.high) for row in (found.overall, *found.rows)} == {
        ("SAME", 1.0, 1.0, 1.0)
    }
    assert found.same
    assert found.differences == ()


def test_a_row_that_only_one_has_or_that_is_unsure_is_not_the_same(table):
    assert not diff(table(keys="abc"), table(keys="bc")).same
    assert not diff(table(keys="bc"), table(keys="abc")).same
    assert not diff(table(noise=0.05), table(noise=0.05, seed=1)).same
    assert diff(table(), table(seed=1)).same


def test_what_was_made_differently_is_named(table, kit):
    a = table()
    header = kit.header(
        device=msgspec.structs.replace(kit.CPU, threads=4),
        protocol=msgspec.structs.replace(kit.QUICK, name="other", settle_runs=9),
        precision="fp16",
        settings={"level": "3"},
        created="2026-02-02",
    )
    found = diff(a, LatencyTable(header, a.rows, path="another"))
    assert [(one.field, one.first, one.second) for one in found.differences] == [
        ("device.threads", 1, 4),
        ("protocol.name", "quick", "other"),
        ("protocol.settle_runs", 0, 9),
        ("precision", "fp32", "fp16"),
        ("settings.level", None, "3"),
    ]
    assert found.same


def test_a_replay_is_told_from_what_was_measured(table, kit):
    a = table()
    recording = Recording(sha256="5" * 64, created="2026-01-01", protocol=kit.QUICK)
    (found,) = diff(a, LatencyTable(kit.header(recording=recording), a.rows, path="another")).differences
    replayed = "replayed from a recording of 2026-01-01, sha256 5555555555555555"
    assert (found.field, found.first, found.second) == ("origin", "measured", replayed)


def test_the_interval_holds_the_truth_as_often_as_it_says(table):
    inside = [
        found.low <= 1.02 <= found.high
        for i in range(40)
        for found in diff(table(seed=2 * i), table(1.02, seed=2 * i + 1)).rows
    ]
    assert np.mean(inside) > 0.9


def test_rows_that_only_one_has_are_named(table):
    found = diff(table(keys="abc"), table(keys="bcd"))
    assert ([row.key for row in found.rows], found.only_a, found.only_b) == (["b", "c"], ("a",), ("d",))


def test_rows_that_change_in_different_ways_leave_the_whole_unsure(table):
    mixed = LatencyTable(table().header, [*table(1.3).rows[:3], *table(0.75, keys="abcdef").rows[3:]])
    found = diff(table(), mixed)
    assert found.overall.verdict == "UNSURE"
    assert {row.verdict for row in found.rows} == {"SLOWER", "FASTER"}


def test_nothing_in_common(table):
    with pytest.raises(LatencyError, match="measured no block in common"):
        diff(table(keys="a"), table(keys="b"))


def test_families_are_compared_by_the_mean_of_their_rows(kit):
    def made(*factors):
        keys = [kit.spec(8, width).key for width in (8, 16)]
        rows = [
            kit.row(key, [10.0 * factor + step / 1000 for step in range(30)])
            for key, factor in zip(keys, factors, strict=False)
        ]
        network = kit.row("network-1", [20.0 * factors[-1]] * 30, kind="network", blocks=tuple(keys))
        return LatencyTable(kit.header(), [*rows, network], path="a table")

    found = diff(made(1.0, 1.0, 1.0), made(1.0, 1.21, 0.5))
    family, networks = found.families
    assert (family.family, family.key, family.verdict, round(family.ratio, 2)) == (
        kit.spec(8, 8).family,
        "",
        "UNSURE",
        1.1,
    )
    assert (networks.family, networks.verdict, networks.ratio) == ("whole networks", "FASTER", 0.5)
    assert [row.family for row in found.rows] == [family.family] * 2 + ["whole networks"]
    assert found.titles == {family.family: kit.spec(8, 8).title, "whole networks": "whole networks"}
    assert (found.tolerance, found.overall_tolerance) == (0.03, 0.01)
