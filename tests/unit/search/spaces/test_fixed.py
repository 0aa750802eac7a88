import random

import pytest

from search import Choice, SearchError, spaces


def test_it_has_one_choice():
    space = spaces.get("resnet20")
    assert (space.size(), space.largest(), space.smallest(), space.random(random.Random(0))) == (
        1,
        Choice(),
        Choice(),
        Choice(),
    )
    assert space.network(Choice()) == space.network()
    with pytest.raises(
        SearchError,
        match=r"^resnet20 is a single network: nothing of it can be chosen, found Choice\(widths=\{'a': 8\}",
    ):
        space.network(Choice(widths={"a": 8}))


def test_stages_are_blocks_that_keep_their_shape_with_the_one_before_them():
    assert spaces.get("resnet20").stages() == {
        "stage1": ["1", "2", "3"],
        "stage2": ["4", "5", "6"],
        "stage3": ["7", "8", "9"],
    }
    assert {name: len(blocks) for name, blocks in spaces.get("resnet164").stages().items()} == {
        f"stage{n}": 18 for n in (1, 2, 3)
    }
    assert [len(blocks) for blocks in spaces.get("resnet-50").stages().values()] == [3, 4, 6, 3]
    assert spaces.get("repvgg-a0").stages() == {}
