"""What the reports of benchmarks share. Not a script."""

import re
from collections.abc import Iterable


def slug(device: str) -> str:
    """A device's name as a part of file names."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def verdicts(rows: Iterable[tuple[str, str, str, bool]]) -> list[str]:
    """Lines of a table: what, the figure reached, what was asked, and whether it holds."""
    lines = [f"| {what} | {reached} | {asked} | {'holds' if holds else 'MISSED'} |" for what, reached, asked, holds in rows]
    return ["| what | reached | asked | |", "|---|---|---|---|", *lines]
