"""The search spaces that are known by name."""

from search.errors import SearchError
from search.space import Space
from search.spaces import repvgg


def names() -> tuple[str, ...]:
    """Names that `get` knows."""
    return ("repvgg-mini",)


def get(name: str, *, classes: int | None = None, resolution: int | None = None) -> Space:
    """The space of that name.

    Args:
        name: one of `names()`.
        classes: number of classes; the space's own by default.
        resolution: height and width of the input in pixels; the space's own by default.

    Raises:
        SearchError: an unknown name, or a number that the space cannot have.
    """
    options = {key: value for key, value in {"classes": classes, "resolution": resolution}.items() if value is not None}
    match name:
        case "repvgg-mini":
            return repvgg.mini(**options)
    raise SearchError(f"unknown space {name!r}: known are {', '.join(names())}; try `lathe space {names()[0]}`")
