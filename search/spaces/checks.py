"""What every named space asks of its input."""

from search.errors import SearchError


def check_input(name: str, *, classes: int, resolution: int, halvings: int) -> None:
    """Refuse an input that no network of a space can take.

    Raises:
        SearchError: fewer than two classes, or an image that the strides leave no pixel of.
    """
    if classes < 2:
        raise SearchError(f"a classifier needs at least 2 classes, found {classes}")
    if resolution < 2**halvings:
        raise SearchError(f"{name} halves its input {halvings} times: the resolution must be at least {2**halvings}, found {resolution}")
