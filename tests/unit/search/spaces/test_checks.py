import pytest

from search import SearchError
from search.spaces.checks import MAX_CLASSES, check_input


@pytest.mark.parametrize(
    ("classes", "resolution", "message"),
    [
        (1, 32, "at least 2 classes, found 1"),
        (MAX_CLASSES + 1, 32, "at most 1,000,000 classes"),
        (10, 2**20, "pixels along a side here, found 1048576"),
        (10, 31, "halves its input 5 times: the resolution must be at least 32, found 31"),
    ],
)
def test_an_input_out_of_range_is_refused(classes, resolution, message):
    with pytest.raises(SearchError, match=message):
        check_input("net", classes=classes, resolution=resolution, halvings=5)


def test_the_smallest_input_is_accepted():
    check_input("net", classes=2, resolution=32, halvings=5)
