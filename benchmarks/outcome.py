"""What the reports of benchmarks share. Not a script."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def slug(device: str) -> str:
    """A device's name as a part of file names."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def verdicts(rows: Iterable[tuple[str, str, str, bool]]) -> list[str]:
    """Lines of a table: what, the figure reached, what was asked, and whether it holds."""
    lines = [
        f"| {what} | {reached} | {asked} | {'holds' if holds else 'MISSED'} |" for what, reached, asked, holds in rows
    ]
    return ["| what | reached | asked | |", "|---|---|---|---|", *lines]


def make_once(work: Path, name: str, make: Callable[[], Any]) -> Any:
    """What is made once, and kept in a directory as JSON for the next run."""
    path = work / f"{name}.json"
    if not path.exists():
        begun = time.perf_counter()
        path.write_text(json.dumps(make()))
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return json.loads(path.read_text())
