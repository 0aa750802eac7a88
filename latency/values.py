"""What a value of an artefact may be: types whose limits hold whenever a file is decoded.

What decodes has the right type; these say that it is a possible value, too. The limits are far beyond what is ever
measured or built.
"""

import datetime
from typing import Annotated

from msgspec import Meta

MAX_US = 1e12
"""Longest latency, budget or time, in microseconds: eleven days."""

MAX_WIDTH = 2**24
"""Most channels of a layer, most classes of a classifier."""

MAX_RESOLUTION = 2**16
"""Most pixels along a side of an input."""

SampleUs = Annotated[float, Meta(gt=0, le=MAX_US)]
"""A time that was measured, in microseconds."""

TimeUs = Annotated[float, Meta(ge=0, le=MAX_US)]
"""A time in microseconds; 0 where there is none."""

TimeMs = Annotated[float, Meta(ge=0, le=3_600_000)]
"""How long something may last, in milliseconds: an hour at most."""

Share = Annotated[float, Meta(ge=0, le=1)]
"""A part of a whole."""

Count = Annotated[int, Meta(ge=0, le=2**62)]
"""A number of things."""

Macs = Annotated[float, Meta(gt=0, le=2**62)]
"""A budget of multiply-accumulates."""

Width = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
"""A number of channels or classes."""

Kept = Annotated[int, Meta(ge=0, le=MAX_WIDTH)]
"""How many channels of a layer, or blocks of a stage, are kept."""

Single = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
"""What was computed in single precision."""

Pixels = Annotated[int, Meta(ge=1, le=MAX_RESOLUTION)]
"""Height or width of an input."""

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""A hash, in hexadecimal."""

OptionalSha256 = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
"""A hash, or "" for none."""

Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A seed: what NumPy, torch and Python all take."""


def require_date(field: str, text: str) -> None:
    """Check that a text is a day, such as 2026-01-31.

    Raises:
        ValueError: it is not.
    """
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"Expected a date such as 2026-01-31 in field `{field}`, got {text!r}") from None
