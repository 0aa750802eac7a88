import pytest

from latency import Device, LatencyError, LatencyTable, Protocol, Row, Runtime, TableHeader
from latency.plot import plot


def row(key, us, kind="block", **fields):
    return Row(kind=kind, key=key, status="ok", samples_us=(us,), median_us=us, low_us=us, high_us=us, **fields)


@pytest.fixture
def table():
    device = Device(kind="cpu", name="Test CPU", cores=4, threads=1, isa=(), memory_mib=8192, driver="", compute_capability="", os="Linux")
    header = TableHeader(
        device=device,
        runtime=Runtime(name="fake", version="1"),
        protocol=Protocol(name="quick", warmup_ms=0.0, min_samples=10, max_samples=40, min_time_ms=0.0, max_time_ms=1.0),
        precision="fp32",
        lowering="1",
        space="toy",
        created="2026-01-01",
    )
    square = [row(f"conv(h=8,w=8)[c_in={a},c_out={b}]", 1.0 + a * b) for a in (8, 16, 32) for b in (8, 16, 24, 32) if (a, b) != (16, 24)]
    line = [row(f"irb(h=8,w=8)[c_in=4,hidden={a},c_out=4]", 2.0 + a) for a in (32, 64, 128, 160, 224, 256)]
    chain = ("conv(h=8,w=8)[c_in=8,c_out=16]", "conv(h=8,w=8)[c_in=16,c_out=32]")
    return LatencyTable(header, [*square, *line, row("network-0", 600.0, "network", blocks=chain)])


def test_a_picture_of_every_family_and_of_the_networks(table, tmp_path):
    plot(table, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    plot(table, tmp_path / "t.svg")
    drawn = (tmp_path / "t.svg").read_text()
    for words in ("conv(h=8,w=8)", "irb(h=8,w=8)", "11 measured, 5 interpolated (dots)", "6 measured", "Test CPU, fake 1", "1 networks"):
        assert words in drawn.replace("&#39;", "'"), words


def test_what_cannot_be_drawn_is_refused(table, tmp_path):
    with pytest.raises(LatencyError, match=r"--plot writes NAME\.png or NAME\.svg, found .*t\.pdf"):
        plot(table, tmp_path / "t.pdf")
    with pytest.raises(LatencyError, match="there is nothing to draw"):
        plot(LatencyTable(table.header, []), tmp_path / "t.png")
    assert not list(tmp_path.iterdir())
