"""One self-contained HTML page: a headline, a main table, then sections and pictures in order. It knows nothing of what they are about."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from latency import plot
from latency.errors import require
from latency.files import write_whole
from latency.outputs import GENERATOR, PAGE, require_file

# Colours are placeholders that become CSS variables, so that one picture serves light and dark; line styles, hatches and strength tell
# the same as colours do.
INK, FIRST, SECOND, LIMIT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {INK: "currentColor", FIRST: "var(--first)", SECOND: "var(--second)", LIMIT: "var(--limit)", PAPER: "var(--paper)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lathe",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Row:
    """A line of the main table."""

    name: str
    unpruned: str
    shipped: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table that looks other than plain text."""

    text: str
    look: str
    """class of the style sheet: hash, passed, failed, notrun, reason or plain"""
    span: int = 1
    """columns that it takes"""
    link: str = ""
    """where the text leads, relative to the page"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a note and a table; without a heading it goes on with the section before."""

    title: str = ""
    note: str = ""
    columns: tuple[str, ...] = ()
    """headings; none where the lines speak for themselves"""
    lines: Sequence[Sequence[str | Cell]]
    """the first cell of each is its heading"""
    after: str = ""
    """a note below the table"""
    dense: bool = False
    """whether it is set in small type"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page, drawn when the page is written."""

    title: str
    caption: str
    height_in: float
    paint: Callable[[Any], None]
    """draws on a figure of matplotlib, in the colours of this file"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that is on a page."""

    title: str
    kind: str
    """of what it is about, for the browser's title"""
    subtitle: str
    headline: str
    rows: tuple[Row, ...]
    note: str
    """of the main table"""
    body: tuple[Section | Picture, ...]


def require_page(out: str | Path, *, force: bool = False) -> None:
    """Check that `write` can write a page, before anything is read; see `latency.outputs.require_file`.

    Raises:
        LatencyError: it cannot.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    require("jinja2", "report")
    require("matplotlib", "report")
    require_file(out, PAGE, flag="--out", force=force)


def write(page: Page, out: str | Path, *, force: bool = False) -> None:
    """Write a page to a file; the same page gives the same bytes.

    Args:
        page: what is on it.
        out: the file; one that this function wrote before is replaced.
        force: whether any file is replaced.

    Raises:
        DeployError: the file cannot be written.
        LatencyError: a file that is no report is in its place.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    require_page(out, force=force)
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files("deploy").joinpath("page.html.j2").read_text("utf-8"))
    body = [(item, _svg(item) if isinstance(item, Picture) else None) for item in page.body]
    try:
        write_whole(out, template.render(page=page, body=body, generator=GENERATOR).encode())
    except OSError as error:
        raise DeployError(f"{out} cannot be written: {error.strerror}") from error


def _svg(picture: Picture) -> Any:
    """The markup of a picture, which needs no escaping."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(plot.WIDTH_IN, picture.height_in), layout="constrained")
        picture.paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    name = picture.title.lower().replace(" ", "-")  # ids are unique in a picture; make them so in the page
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg))
