import msgspec
import pytest

from latency import BlockSpec, Device, LatencyError, LatencyTable, Protocol, Row, Runtime, TableHeader
from latency.coverage import held_out
from latency.diff import diff
from latency.plot import PRINT, WIDTH_IN, pictures, plot, plot_diffs
from latency.units import MICROSECONDS, MILLISECONDS

Figure = pytest.importorskip("matplotlib.figure", reason="the extra report is not installed").Figure


def row(key, us, kind="block", **fields):
    return Row(kind=kind, key=key, status="ok", samples_us=(us,), median_us=us, low_us=us, high_us=us, **fields)


@pytest.fixture
def table():
    device = Device(
        kind="cpu",
        name="Test CPU",
        cores=4,
        threads=1,
        isa=(),
        memory_mib=8192,
        driver="",
        compute_capability="",
        os="Linux",
    )
    header = TableHeader(
        device=device,
        runtime=Runtime(name="fake", version="1"),
        protocol=Protocol(
            name="quick", warmup_ms=0.0, min_samples=10, max_samples=40, min_time_ms=0.0, max_time_ms=1.0
        ),
        precision="fp32",
        lowering="1",
        space="toy",
        created="2026-01-01",
    )
    square = [
        row(f"conv(h=8,w=8)[c_in={a},c_out={b}]", 1.0 + a * b)
        for a in (8, 16, 32)
        for b in (8, 16, 24, 32)
        if (a, b) != (16, 24)
    ]
    line = [row(f"irb(h=8,w=8)[c_in=4,hidden={a},c_out=4]", 2.0 + a) for a in (32, 64, 128, 160, 224, 256)]
    chain = ("conv(h=8,w=8)[c_in=8,c_out=16]", "conv(h=8,w=8)[c_in=16,c_out=32]")
    return LatencyTable(header, [*square, *line, row("network-0", 600.0, "network", blocks=chain)])


def painted(picture):
    """The panels of a picture by the first line of their title."""
    figure = Figure(figsize=(WIDTH_IN, picture.height_in))
    picture.paint(figure)
    return {ax.get_title().replace("\n", " "): ax for ax in figure.axes if ax.get_visible()}


def marks(ax, marker, face):
    """Places of all marks of a shape and a filling."""
    return {
        (float(x), float(y))
        for line in ax.lines
        if line.get_marker() == marker and line.get_markerfacecolor() == face
        for x, y in zip(*line.get_data(), strict=True)
    }


def test_what_was_measured_interpolated_and_held_out_has_shapes_of_its_own(table):
    networks, families = pictures(table, PRINT, MICROSECONDS)
    assert networks.caption.startswith("1 networks, measured whole")
    assert families.title == "Latency over width"
    panels = painted(families)
    line = panels["irb(h=8, w=8)[c_in=4, c_out=4]"]
    held = {
        row.key
        for row in table.rows
        if row.key in held_out([BlockSpec.parse(row.key) for row in table.rows if row.kind == "block"])
    }
    held = {BlockSpec.parse(key).width("hidden") for key in held if key.startswith("irb")}
    assert {x for x, _ in marks(line, "o", PRINT.paper)} == {96, 192}
    assert {x for x, _ in marks(line, "o", PRINT.first)} == {32, 64, 128, 160, 224, 256} - held
    assert {x for x, _ in marks(line, "D", PRINT.first)} == held
    assert marks(line, "x", PRINT.ink) == set()
    grid = panels["conv(h=8, w=8)"]
    assert marks(grid, "o", PRINT.paper) == {(3.0, 1.0)} | {(j + 1.0, 2.0) for j in range(4)}
    assert grid.collections[0].get_array().shape == (4, 4)
    assert panels[""].get_ylabel() == "µs"  # of its colours


def test_networks_are_drawn_in_the_unit_of_the_page(table):
    (axes,) = painted(pictures(table, PRINT, MILLISECONDS)[0]).values()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("measured, ms", "predicted, ms")
    assert {x for x, _ in marks(axes, "o", PRINT.first)} == {0.6}


def test_a_transferred_block_is_a_square(table):
    rows = [row for row in table.rows if row.kind == "block"]
    rows = [
        msgspec.structs.replace(row, status="transferred", samples_us=()) if row.key.endswith("=64,c_out=4]") else row
        for row in rows
    ]
    line = painted(pictures(LatencyTable(table.header, rows), PRINT, MICROSECONDS)[0])["irb(h=8, w=8)[c_in=4, c_out=4]"]
    assert marks(line, "s", PRINT.paper) == {(64.0, 66.0)}
    assert 64.0 not in {x for x, _ in marks(line, "o", PRINT.first)}


def test_an_unstable_block_is_crossed_and_a_family_of_one_has_a_line(table):
    rows = [msgspec.structs.replace(row, status="unstable") if "hidden=64" in row.key else row for row in table.rows]
    drawn = pictures(LatencyTable(table.header, [*rows, row("head(h=1,w=1)[c_in=4]", 3.0)]), PRINT, MICROSECONDS)
    assert [picture.title for picture in drawn] == [
        "Predicted against measured",
        "Latency over width",
        "Blocks of one width",
    ]
    assert marks(painted(drawn[1])["irb(h=8, w=8)[c_in=4, c_out=4]"], "x", PRINT.ink) == {(64.0, 66.0)}
    (ax,) = painted(drawn[2]).values()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["head(h=1,w=1)[c_in=4]"]


def test_in_a_full_family_nothing_is_held_out(table):
    """What is held out judges the interpolation; where there is none, the mark would mean nothing."""
    rows = [row(f"irb(h=8,w=8)[c_in=4,hidden={a},c_out=4]", 2.0 + a) for a in range(32, 3584, 32)]
    assert held_out([BlockSpec.parse(row.key) for row in rows])
    (ax,) = painted(pictures(LatencyTable(table.header, rows), PRINT, MICROSECONDS)[0]).values()
    assert len(marks(ax, "o", PRINT.first)) == len(rows)


def test_the_picture_is_a_file(table, tmp_path):
    plot(table, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    plot(table, tmp_path / "t.svg")
    drawn = (tmp_path / "t.svg").read_text()
    for words in ("conv(h=8, w=8)", "irb(h=8, w=8)", "Test CPU, fake 1, fp32, toy", "Predicted against measured"):
        assert words in drawn, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.png", "t.svg"]


def test_what_cannot_be_drawn_is_refused(table, tmp_path):
    with pytest.raises(LatencyError, match=r"--plot writes NAME\.png or NAME\.svg, found .*t\.pdf"):
        plot(table, tmp_path / "t.pdf")
    with pytest.raises(LatencyError, match="there is nothing to draw"):
        plot(LatencyTable(table.header, []), tmp_path / "t.png")
    assert not list(tmp_path.iterdir())


def test_comparisons_are_drawn_one_below_the_other(table, tmp_path):
    slower = LatencyTable(
        table.header, [msgspec.structs.replace(row, median_us=2 * row.median_us) for row in table.rows]
    )
    out = tmp_path / "diff.svg"
    plot_diffs([table, table, slower], [diff(table, table), diff(table, slower)], out)
    said = out.read_text()
    assert all(f"<!-- {words} -->" in said for words in ("conv @8x8", "irb @8x8", "whole networks", "all"))
    plot_diffs([table, table], [diff(table, table)], out)  # one that was drawn before is replaced
    assert out.stat().st_size < len(said)
