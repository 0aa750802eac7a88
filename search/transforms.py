"""Changes to training images, as a user writes them. Needs no torch."""

import math

from msgspec import Struct

from search.errors import SearchError

AUTO = "auto"
"""What the data set comes with."""

# name -> amount that is meant where none is given, least and largest one, whether it is a whole number
_KNOWN: dict[str, tuple[float, float, float, bool]] = {
    "flip": (0.5, 0, 1, False),
    "crop": (4, 1, 256, True),
    "resized-crop": (0.08, 0.01, 1, False),
    "randaugment": (9, 0, 30, True),
    "cutout": (8, 1, 256, True),
}


class Transform(Struct, frozen=True, forbid_unknown_fields=True):
    """A random change to an image.

    `flip`: mirrored left to right with the probability of the amount. `crop`: padded by so many pixels, then cut to the old size.
    `resized-crop`: a part with at least this share of the area, resized to the old size. `randaugment`: two changes of colour or
    geometry of this magnitude (Cubuk et al. 2020). `cutout`: a square with sides of so many pixels is lost (DeVries and Taylor 2017).
    """

    name: str
    amount: float


def parse(text: str) -> tuple[Transform, ...] | None:
    """Read such as `crop:4,flip,cutout:8`.

    Args:
        text: names, each with an amount or without, separated by commas; `auto`; or `none`.

    Returns:
        The transforms, in order; None for `auto`.

    Raises:
        SearchError: a name is unknown or given twice, or an amount out of its range.
    """
    if text == AUTO:
        return None
    found = tuple(map(_transform, text.split(","))) if text != "none" else ()
    names = [transform.name for transform in found]
    for name in names:
        if names.count(name) > 1:
            raise SearchError(f"--augment has {name} twice: give it once")
    return found


def _transform(word: str) -> Transform:
    name, colon, amount = word.strip().partition(":")
    if name not in _KNOWN:
        raise SearchError(f"--augment has {word!r}: known are {AUTO}, none, or of {', '.join(_KNOWN)} some, such as crop:4,flip")
    usual, low, high, whole = _KNOWN[name]
    try:
        value = float(amount) if colon else usual
    except ValueError:
        value = math.nan
    if not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise SearchError(f"--augment {name} needs {kind} from {low:g} to {high:g} behind the colon, found {amount!r}")
    return Transform(name, value)
