import pytest

from latency import BlockSpec, Device, LatencyTable, Protocol, Row, Runtime, TableHeader
from latency.block import network_key
from search import spaces
from search.papers import latencies, pas, prunet


@pytest.fixture
def table():
    """The blocks of ResNet-50 at 1 us each, and RepVGG-A0 as a whole, on a device that is named only."""
    device = Device(
        kind="gpu",
        name="V100",
        cores=0,
        threads=0,
        isa=(),
        memory_mib=16384,
        driver="450",
        compute_capability="7.0",
        os="Linux",
    )
    header = TableHeader(
        device=device,
        runtime=Runtime(name="tensorrt", version="10.12"),
        protocol=Protocol(
            name="quick", warmup_ms=0.0, min_samples=10, max_samples=40, min_time_ms=0.0, max_time_ms=1.0
        ),
        precision="fp16",
        lowering="1",
        space="resnet-50",
        created="2026-01-01",
    )

    def row(kind, key, us, blocks=()):
        return Row(
            kind=kind, key=key, status="ok", samples_us=(us,), median_us=us, low_us=us, high_us=us, blocks=blocks
        )

    whole = tuple(block.key for block in spaces.get("repvgg-a0").network())
    blocks = dict.fromkeys(block.key for block in spaces.get("resnet-50").network())
    return LatencyTable(
        header, [*(row("block", key, 50.0) for key in blocks), row("network", network_key(whole), 272.0, whole)]
    )


def test_networks_of_a_table_stand_beside_the_published_ones(table):
    found = {
        (row.published.network, row.published.unit): (row.published, row.ours[0])
        for row in latencies.comparisons([table])
    }
    published, ours = found["ResNet-50", "ms"]
    assert ours == table.predict([BlockSpec.parse(block.key) for block in spaces.get("resnet-50").network()])
    assert published.ratio(ours) == pytest.approx(ours.us / 1100.0)
    published, ours = found["RepVGG-A0", "FPS"]
    assert (ours.source, ours.us, published.ratio(ours)) == ("measured", 272.0, None)
    assert found["GPUNet-1", "ms"][1] is None
    assert found["PRUNET-0", "ms"][1] is None


def test_numbers_are_those_of_the_papers_and_networks_that_are_known_exist():
    found = {(row.network, row.unit): row.value for row in latencies.published()}
    assert len(found) == len(latencies.published())
    prunets = {row.row: row.paper for row in prunet.rows() if row.quantity == "latency"}
    assert {name: found[name, "ms"] for name in prunets} == prunets
    assert {row.network for row in latencies.published() if row.unit == "FPS"} == {
        row.row for row in pas.rows() if row.table == "Table 2"
    }
    for row in latencies.published():
        assert not row.known or row.known in spaces.names()
