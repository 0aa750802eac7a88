import pytest

from latency import LatencyTable
from latency.estimate import estimate


def table(kit, *rows):
    return LatencyTable(kit.header(), rows, path="t.latency.jsonl")


def test_parts_add_up_to_the_network(kit):
    blocks = [kit.spec(8, 8), kit.spec(8, 16), kit.spec(8, 8)]
    found = table(kit, *(kit.row(block.key, [us]) for block, us in zip(blocks[:2], (10.0, 20.0), strict=True)))
    said = estimate(found, blocks, ["a", "b", "c"])
    assert said.latency == found.predict(blocks)
    assert said.latency.us == pytest.approx(said.network_us + sum(part.adds.us for part in said.parts))
    assert [(part.layer, part.alone.us) for part in said.parts] == [("a", 10.0), ("b", 20.0), ("c", 10.0)]
    assert said.uncovered == ()


def test_what_is_not_covered_is_named_with_its_reason_and_the_others_are_predicted(kit):
    blocks = [kit.spec(8, 8), kit.spec(8, 512), kit.spec(8, 512)]
    found = table(kit, kit.row(blocks[0].key, [10.0]))
    said = estimate(found, blocks)
    assert said.latency == found.predict(blocks[:1])
    assert said.uncovered == (blocks[1].key,)
    assert "is outside of the measured" in said.parts[1].reason
    assert "lathe profile" not in said.parts[1].reason
    assert estimate(found, blocks[1:]).latency is None
