"""Requirements on the input of named spaces."""

from latency.values import MAX_RESOLUTION
from search.errors import SearchError

MAX_CLASSES = 1_000_000
"""Maximum number of classes of a classifier."""


def check_input(name: str, *, classes: int, resolution: int, halvings: int) -> None:
    """Require an input that the networks of a space support.

    Raises:
        SearchError: too few or too many classes, or an image that is too large, or too small for the strides.
    """
    if classes < 2:
        raise SearchError(f"a classifier needs at least 2 classes, found {classes}")
    if classes > MAX_CLASSES:
        raise SearchError(f"a classifier has at most {MAX_CLASSES:,} classes here, found {classes}")
    if resolution > MAX_RESOLUTION:
        raise SearchError(f"an input has at most {MAX_RESOLUTION:,} pixels along a side here, found {resolution}")
    if resolution < 2**halvings:
        raise SearchError(
            f"{name} halves its input {halvings} times: the resolution must be at least {2**halvings}, found "
            f"{resolution}"
        )
