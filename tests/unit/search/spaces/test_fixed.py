import random

import pytest

from search import Choice, SearchError, spaces


def test_it_has_one_choice():
    space = spaces.get("resnet20")
    assert (space.size(), space.largest(), space.smallest(), space.random(random.Random(0))) == (1, Choice(), Choice(), Choice())
    assert space.network(Choice()) == space.network()
    with pytest.raises(SearchError, match=r"^resnet20 is a single network: nothing of it can be chosen, found Choice\(widths=\{'a': 8\}"):
        space.network(Choice(widths={"a": 8}))
