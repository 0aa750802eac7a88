import collections

import pytest

from latency import LatencyError, Workload
from latency.shard import shard


def works(blocks: int, networks: int) -> list[Workload]:
    made = [Workload(kind="block", key=f"b{i}", onnx=bytes) for i in range(blocks)]
    return made + [Workload(kind="network", key=f"n{i}", onnx=bytes) for i in range(networks)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
def test_parts_hold_everything_once_and_are_balanced(count):
    whole = works(31, 10)
    parts = [shard([*whole, *whole[:5]], f"{index}/{count}") for index in range(1, count + 1)]
    assert sorted(work.key for part in parts for work in part) == sorted(work.key for work in whole)
    for kind in ("block", "network"):
        counts = [collections.Counter(work.kind for work in part)[kind] for part in parts]
        assert max(counts) - min(counts) <= 1
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_neighbours_go_to_different_parts():
    assert [work.key for work in shard(works(6, 2), "2/3")] == ["b1", "b4", "n1"]


def test_one_part_of_one_is_the_whole_in_order():
    assert [work.key for work in shard(works(3, 2), "1/1")] == ["b0", "b1", "b2", "n0", "n1"]


@pytest.mark.parametrize(
    "part", ["0/4", "5/4", "1/0", "1", "1/2/3", "-1/4", "a/b", "", "1/4 ", "1/٤", "1" * 5000 + "/2"]
)
def test_other_parts_are_refused_in_one_line(part):
    with pytest.raises(LatencyError, match="--shard") as error:
        shard(works(3, 1), part)
    assert "\n" not in str(error.value)
