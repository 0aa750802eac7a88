"""Parse the user's list of training image transforms. Needs no torch."""

import math

from msgspec import Struct

from search.errors import SearchError

AUTO = "auto"
"""The data set's own augmentation."""

# name -> default amount, minimum, maximum, whether it is an integer
_KNOWN: dict[str, tuple[float, float, float, bool]] = {
    "flip": (0.5, 0, 1, False),
    "crop": (4, 1, 256, True),
    "resized-crop": (0.08, 0.01, 1, False),
    "randaugment": (9, 0, 30, True),
    "cutout": (8, 1, 256, True),
}


class Transform(Struct, frozen=True, forbid_unknown_fields=True):
    """A random image transform.

    The meaning of `amount` depends on `name`. `flip`: probability of a horizontal flip. `crop`: padding in pixels
    before a random crop to the original size. `resized-crop`: minimum share of the area that is cropped and resized to
    the original size. `randaugment`: magnitude of two changes of colour or geometry (Cubuk et al. 2020). `cutout`: side
    in pixels of a square that is erased (DeVries and Taylor 2017).
    """

    name: str
    amount: float


def parse(text: str) -> tuple[Transform, ...] | None:
    """Parse a list of transforms such as `crop:4,flip,cutout:8`.

    Args:
        text: comma-separated names, each with an optional amount; `auto`; or `none`.

    Returns:
        The transforms, in order; None for `auto`.

    Raises:
        SearchError: a name is unknown or given twice, or an amount is out of range.
    """
    if text == AUTO:
        return None
    transforms = tuple(map(_transform, text.split(","))) if text != "none" else ()
    names = [transform.name for transform in transforms]
    for name in names:
        if names.count(name) > 1:
            raise SearchError(f"--augment has {name} twice: give it once")
    return transforms


def _transform(word: str) -> Transform:
    name, colon, amount = word.strip().partition(":")
    if name not in _KNOWN:
        raise SearchError(
            f"--augment has {word!r}: give {AUTO}, none, or some of {', '.join(_KNOWN)}, such as crop:4,flip"
        )
    default, low, high, is_integer = _KNOWN[name]
    try:
        value = float(amount) if colon else default
    except ValueError:
        value = math.nan
    if not low <= value <= high or (is_integer and value != int(value)):
        kind = "an integer" if is_integer else "a number"
        raise SearchError(f"--augment {name} needs {kind} from {low:g} to {high:g} after the colon, found {amount!r}")
    return Transform(name, value)
