import itertools
import math
import re

import msgspec
import numpy as np
import pytest

from latency import (
    BlockSpec,
    CoverageError,
    FingerprintMismatch,
    Latency,
    LatencyTable,
    Row,
    Runtime,
)
from latency.check import check
from unit.latency.conftest import write

GRID = list(range(8, 129, 8))


def test_require_names_the_field(path, kit):
    table = LatencyTable.load(path)
    table.require()
    table.require(device=kit.CPU, runtime=Runtime(name="fake", version="1.0"), precision="fp32")
    with pytest.raises(
        FingerprintMismatch,
        match=r"has device\.threads 1, wanted 4: measure another with `lathe profile toy --backend fake --threads 4 --protocol quick --out TABLE`",
    ):
        table.require(device=msgspec.structs.replace(kit.CPU, threads=4))
    with pytest.raises(FingerprintMismatch, match=r"has runtime\.name 'fake', wanted 'tensorrt-rtx'"):
        table.require(runtime=Runtime(name="tensorrt-rtx", version="1.0"))
    with pytest.raises(FingerprintMismatch, match="has precision 'fp32', wanted 'fp16'"):
        table.require(precision="fp16")


def test_a_measured_block(path, kit):
    assert LatencyTable.load(path).lookup(kit.spec(16, 8)) == Latency(
        us=17.0, low_us=16.5, high_us=17.25, source="measured"
    )


def test_between_measured_blocks(path, kit):
    found = LatencyTable.load(path).lookup(kit.spec(12, 12))
    assert found.source == "interpolated"
    assert found.us == pytest.approx(12 * 12 / 8 + 1)
    assert found.low_us <= 8.5
    assert found.high_us >= 33.25


@pytest.mark.parametrize(("c_in", "c_out"), [(7, 8), (32, 8), (8, 17), (25, 25)])
def test_nothing_is_extrapolated(path, kit, c_in, c_out):
    with pytest.raises(
        CoverageError,
        match=r"is not in .*is outside of the measured.*`lathe profile toy --backend fake --protocol quick --out .*t\.latency\.jsonl`",
    ):
        LatencyTable.load(path).lookup(kit.spec(c_in, c_out))


def test_an_unknown_family(path, kit):
    with pytest.raises(CoverageError, match=re.escape("block head(act=relu,h=32,w=32)[c_in=8,c_out=8] is not in")):
        LatencyTable.load(path).lookup(kit.spec(8, 8, op="head"))


def test_a_block_that_failed_is_not_interpolated_away(tmp_path, kit, rows):
    failed = msgspec.structs.replace(
        rows[3], status="build_failed", samples_us=(), median_us=0.0, low_us=0.0, high_us=0.0, error="no kernel"
    )
    table = LatencyTable.load(write(tmp_path / "t.jsonl", kit.header(), [*rows[:3], failed, *rows[4:]]))
    with pytest.raises(CoverageError, match=r"is build_failed in .* \(no kernel\): measure it"):
        table.lookup(kit.spec(16, 8))
    with pytest.raises(CoverageError, match=r"the 5 measured blocks of conv\(.*\) are too few to tell"):
        table.lookup(kit.spec(12, 8))
    assert table.lookup(kit.spec(8, 8)).source == "measured"


def test_an_unstable_block_counts_with_its_interval(kit):
    row = kit.row(kit.spec(8, 8).key, [5.0, 9.0, 14.0], status="unstable")
    assert LatencyTable(kit.header(), [row]).lookup(kit.spec(8, 8)) == Latency(
        us=9.0, low_us=5.0, high_us=14.0, source="measured"
    )


def test_surface_holds_the_grid(path, kit):
    table = LatencyTable.load(path)
    surface = table.surface(kit.spec(8, 8).family)
    assert {name: axis.tolist() for name, axis in surface.axes.items()} == {"c_in": [8, 16, 24], "c_out": [8, 16]}
    assert surface.values_us.tolist() == [[a * b / 8 + 1 for b in (8, 16)] for a in (8, 16, 24)]
    assert surface.low_us[2, 1] == 24 * 16 / 8 + 0.5
    assert table.surface(kit.spec(8, 8).family) is surface


def test_a_family_with_too_few_blocks_says_what_measures_more(kit):
    table = LatencyTable(
        kit.header(space="mini"), [kit.row(kit.spec(a, b).key, [float(a * b)]) for a, b in ((8, 8), (16, 16))]
    )
    with pytest.raises(
        CoverageError, match=r"too few .*: measure it with `lathe profile mini --backend .* --out TABLE`$"
    ):
        table.surface(kit.spec(8, 8).family, axes={"c_in": [8, 16], "c_out": [8, 16]})


def test_surface_over_some_of_the_grid(kit):
    points = [(3, 8), (3, 16), *itertools.product((8, 16), (8, 16, 32))]
    table = LatencyTable(kit.header(), [kit.row(kit.spec(a, b).key, [float(a * b)]) for a, b in points])
    family = kit.spec(8, 8).family
    with pytest.raises(CoverageError, match=re.escape(f"the grid of {family} lacks c_in=3,c_out=32")):
        table.surface(family)
    assert table.surface(family, axes={"c_in": [8, 16], "c_out": [32, 8]}).values_us.tolist() == [[64, 256], [128, 512]]
    with pytest.raises(CoverageError, match="no block of nothing was measured"):
        table.surface("nothing")


def test_many_missing_points_are_counted(kit):
    table = LatencyTable(kit.header(), [kit.row(kit.spec(a, a).key, [1.0]) for a in (1, 2, 3, 4)])
    with pytest.raises(CoverageError, match=r"c_in=1,c_out=2; .* and 7 more"):
        table.surface(kit.spec(1, 1).family)


def test_holes_of_a_family_over_one_width_keep_its_steps(kit):
    """Half of the widths are there, as unevenly as adaptive coverage leaves them."""

    def truth(b):
        return 20.0 + 5 * math.ceil(b / 64)

    known = [32, 64, 96, 160, 192, 256, 288, 384, 416, 480, 512]
    table = LatencyTable(kit.header(), [kit.row(kit.spec(3, b).key, [truth(b)]) for b in known])
    for b in (128, 224, 320, 352, 448):
        assert table.lookup(kit.spec(3, b)).us == pytest.approx(truth(b), rel=0.01)


def test_holes_are_interpolated_between_what_was_measured(kit):
    def truth(a, b):
        return 50 + math.ceil(a / 16) * math.ceil(b / 16) * 4

    points = list(itertools.product(GRID, GRID))
    holes = [(a, b) for a, b in points if (5 * a + 3 * b) % 56 != 0 and {a, b} - {8, 128}]
    table = LatencyTable(
        kit.header(), [kit.row(kit.spec(a, b).key, [float(truth(a, b))]) for a, b in points if (a, b) not in holes]
    )
    found = [table.lookup(kit.spec(a, b)) for a, b in holes]
    assert {latency.source for latency in found} == {"interpolated"}
    assert all(latency.low_us <= latency.us <= latency.high_us for latency in found)
    assert np.mean([abs(latency.us / truth(a, b) - 1) for latency, (a, b) in zip(found, holes, strict=True)]) < 0.02
    whole = table.surface(kit.spec(8, 8).family, axes={"c_in": GRID, "c_out": GRID})
    assert whole.values_us[0, 1] == pytest.approx(table.lookup(kit.spec(8, 16)).us)
    with pytest.raises(CoverageError, match="outside of the measured"):
        table.surface(kit.spec(8, 8).family, axes={"c_in": [*GRID, 136], "c_out": GRID})


@pytest.fixture
def networks(kit):
    """Blocks that cost a * b / 50 + 3, and networks of three of them that cost 1.05 * sum - 2 a boundary."""
    blocks = {(a, b): kit.row(kit.spec(a, b).key, [a * b / 50 + 3]) for a in (3, *GRID) for b in GRID}
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        a, b, c = (int(value) for value in rng.choice(GRID, 3))
        us = 1.05 * sum(blocks[pair].median_us for pair in ((3, a), (a, b), (b, c))) - 4
        rows.append(
            kit.row(
                f"n{i}",
                [round(us, 3)],
                kind="network",
                blocks=tuple(kit.spec(*p).key for p in ((3, a), (a, b), (b, c))),
            )
        )
    return [kit.row("overhead", [1.5], kind="overhead"), *blocks.values(), *rows]


def test_a_network_is_predicted_by_the_fitted_sum(kit, networks):
    table = LatencyTable(kit.header(), networks)
    assert table.predictor.networks == 12
    assert table.predictor.mean_absolute_error < 1e-3
    found = table.predict([kit.spec(3, 64), kit.spec(64, 64), kit.spec(64, 128)])
    assert found.source == "predicted"
    assert found.us == pytest.approx(1.05 * (9 + (3 * 64 + 64 * 64 + 64 * 128) / 50) - 4, rel=2e-3)
    assert found.low_us <= found.us <= found.high_us


def test_interpolated_blocks_widen_the_prediction(kit, networks):
    table = LatencyTable(kit.header(), networks)
    on, between = (table.predict([kit.spec(3, b), kit.spec(b, 64), kit.spec(64, 64)]) for b in (64, 60))
    assert between.high_us - between.low_us > 3 * (on.high_us - on.low_us)


def test_without_networks_the_overhead_is_taken_off_and_the_interval_is_wide(kit, networks):
    table = LatencyTable(kit.header(), [row for row in networks if row.kind != "network"])
    found = table.predict([kit.spec(3, 8), kit.spec(8, 8)])
    assert found.us == pytest.approx(6 + 24 / 50 + 64 / 50 - 1.5)
    assert (found.low_us, found.high_us) == pytest.approx((0.75 * found.us, 1.25 * found.us))


def test_the_fit_leaves_out_networks_that_are_unstable_or_uncovered(kit, networks):
    unstable = [msgspec.structs.replace(row, status="unstable") if row.key == "n0" else row for row in networks]
    uncovered = kit.row("n99", [9.0], kind="network", blocks=(kit.spec(3, 999).key,))
    assert LatencyTable(kit.header(), [*unstable, uncovered]).predictor.networks == 11


def test_a_network_with_an_uncovered_block_names_it(kit, networks):
    with pytest.raises(CoverageError, match=re.escape(kit.spec(8, 999).key)):
        LatencyTable(kit.header(), networks).predict([kit.spec(3, 8), kit.spec(8, 999)])


def test_parse_survives_the_table(path):
    keys = [row.key for row in LatencyTable.load(path).rows if row.kind == "block"]
    assert [BlockSpec.parse(key).key for key in keys] == keys


def test_a_measured_network_is_found_by_its_blocks(kit):
    blocks = [kit.spec(1, 2), kit.spec(2, 3)]
    row = Row(
        kind="network",
        key="n",
        status="ok",
        samples_us=(5.0,),
        median_us=5.0,
        low_us=4.0,
        high_us=6.0,
        blocks=tuple(b.key for b in blocks),
    )
    table = LatencyTable(kit.header(), [row])
    assert table.measured_network(blocks) == Latency(us=5.0, low_us=4.0, high_us=6.0, source="measured")
    assert table.measured_network(blocks[:1]) is None


def test_whole_networks_that_failed_are_said_wherever_the_table_predicts(kit):
    blocks = [kit.spec(8, 16), kit.spec(16, 8)]
    keys = tuple(spec.key for spec in blocks)
    rows = [kit.row(spec.key, [10.0]) for spec in blocks]
    failed = [
        Row(kind="network", key=f"network-{k}", status="build_failed", error="scales must be positive", blocks=keys)
        for k in range(3)
    ]
    table = LatencyTable(kit.header(), [*rows, *failed])
    words = "3 of 3 whole networks failed (build_failed: scales must be positive), so the error of predictions is assumed: 25%"
    assert table.predict(blocks).origin == table.unproved == words
    assert words in [finding.words for finding in check(table) if finding.problem == "unproved"]
    assert LatencyTable(kit.header(), rows).predict(blocks).origin == ""
