import pytest

from latency import LatencyError
from lathe import cli
from lathe.spaces import describe_space, list_spaces
from search import spaces


def test_spaces_are_listed_or_one_is_named():
    assert set(list_spaces(cli.parse(["space", "--list"]))) == set(spaces.names())
    with pytest.raises(LatencyError, match="^--list names every space: leave out 'repvgg-mini', or --list$"):
        list_spaces(cli.parse(["space", "repvgg-mini", "--list"]))
    with pytest.raises(LatencyError, match="^name a space, such as `lathe space repvgg-mini`"):
        describe_space(cli.parse(["space"]))
