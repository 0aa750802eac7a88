"""Types of the values in artefacts, with limits that are checked whenever a file is decoded.

A decoded value has the right type; the limits say that it is possible as well. They are far beyond anything measured
or built.
"""

import datetime
from typing import Annotated

from msgspec import Meta

MAX_US = 1e12
"""Maximum latency, budget or time in microseconds: eleven days."""

MAX_WIDTH = 2**24
"""Maximum number of channels of a layer, or of classes of a classifier."""

MAX_RESOLUTION = 2**16
"""Maximum number of pixels along a side of an input."""

SampleUs = Annotated[float, Meta(gt=0, le=MAX_US)]
"""A measured time in microseconds."""

TimeUs = Annotated[float, Meta(ge=0, le=MAX_US)]
"""A time in microseconds; 0 for none."""

TimeMs = Annotated[float, Meta(ge=0, le=3_600_000)]
"""A duration in milliseconds, at most an hour."""

Share = Annotated[float, Meta(ge=0, le=1)]
"""A fraction from 0 to 1."""

Count = Annotated[int, Meta(ge=0, le=2**62)]
"""A non-negative count."""

Macs = Annotated[float, Meta(gt=0, le=2**62)]
"""A budget of multiply-accumulates."""

Width = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
"""A number of channels or classes."""

Kept = Annotated[int, Meta(ge=0, le=MAX_WIDTH)]
"""Number of channels of a layer, or of blocks of a stage, that are kept."""

Single = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
"""A number computed in single precision."""

Pixels = Annotated[int, Meta(ge=1, le=MAX_RESOLUTION)]
"""Height or width of an input."""

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A SHA-256 hash in hexadecimal."""

OptionalSha256 = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
"""A SHA-256 hash in hexadecimal, or "" for none."""

Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A seed in the range that NumPy, torch and Python all accept."""


def require_date(field: str, text: str) -> None:
    """Require a date in ISO 8601, such as 2026-01-31.

    Raises:
        ValueError: `text` is not a date; names the field.
    """
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"Expected a date such as 2026-01-31 in field `{field}`, got {text!r}") from None
