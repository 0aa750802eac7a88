import pytest

from search import SearchError
from search.transforms import Transform, parse


def test_transforms_are_read_in_order_with_their_usual_amounts():
    assert parse("crop:2, flip,randaugment") == (
        Transform("crop", 2.0),
        Transform("flip", 0.5),
        Transform("randaugment", 9.0),
    )
    assert parse("none") == ()
    assert parse("auto") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mixup",
            "^--augment has 'mixup': give auto, none, or some of flip, crop, resized-crop, randaugment, cutout, such as crop:4,flip$",
        ),
        ("", "^--augment has '': give auto"),
        ("flip,auto", "^--augment has 'auto'"),
        ("flip,crop,flip", "^--augment has flip twice: give it once$"),
        ("flip:2", "^--augment flip needs a number from 0 to 1 after the colon, found '2'$"),
        ("crop:0", "^--augment crop needs an integer from 1 to 256 after the colon, found '0'$"),
        ("crop:2.5", "found '2.5'$"),
        ("cutout:", "found ''$"),
        ("resized-crop:nan", "found 'nan'$"),
        ("randaugment:x", "found 'x'$"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(SearchError, match=message):
        parse(text)
