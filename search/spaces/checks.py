"""What every named space asks of its input."""

from latency.values import MAX_RESOLUTION
from search.errors import SearchError

MAX_CLASSES = 1_000_000
"""Most classes of a classifier."""


def check_input(name: str, *, classes: int, resolution: int, halvings: int) -> None:
    """Refuse an input that no network of a space can take.

    Raises:
        SearchError: too few or too many classes, an image too large, or one that the strides leave no pixel of.
    """
    if classes < 2:
        raise SearchError(f"a classifier needs at least 2 classes, found {classes}")
    if classes > MAX_CLASSES:
        raise SearchError(f"a classifier has at most {MAX_CLASSES:,} classes here, found {classes}")
    if resolution > MAX_RESOLUTION:
        raise SearchError(f"an input has at most {MAX_RESOLUTION:,} pixels along a side here, found {resolution}")
    if resolution < 2**halvings:
        raise SearchError(f"{name} halves its input {halvings} times: the resolution must be at least {2**halvings}, found {resolution}")
