"""One self-contained HTML page: a headline, a main table, then sections and pictures in order. It knows nothing of what they are about."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


_LOOKS = {"passed": "good", "met": "good", "failed": "bad", "missed": "bad", "unsure": "unsure", "not run": "notrun"}


def look_of(verdict: str) -> str:
    """The class of the style sheet for a verdict, with its icon and colour; "" for what is no verdict."""
    return _LOOKS.get(verdict, "")


@dataclass(frozen=True)
class Row:
    """A line of the main table; "" where nothing is known."""

    name: str
    unpruned: str
    shipped: str
    verdict: str = ""
    """that `shipped` ends with, such as met; "" for none"""

    @property
    def look(self) -> str:
        """Its class of the style sheet."""
        return look_of(self.verdict)


@dataclass(frozen=True)
class Cell:
    """A cell of a table that looks other than plain text."""

    text: str
    look: str = ""
    """class of the style sheet: hash, reason or that of a verdict"""
    whole: bool = False
    """whether it takes the whole line"""
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
class Bar:
    """A bar of a gauge."""

    name: str
    value: float
    words: str
    look: str
    """classes of the style sheet: `limit`, or `bar`, with `chosen` and the class of a verdict"""
    low: float = 0.0
    high: float = 0.0
    """ends of its interval, where it has one"""


@dataclass(frozen=True)
class Gauge:
    """Bars beneath one another, in the head of a page."""

    title: str
    bars: tuple[Bar, ...]
    limit: float | None = None
    """a mark across all bars"""

    def share(self, value: float) -> str:
        """A length on the page."""
        most = max(end for bar in self.bars for end in (bar.value, bar.high))
        return f"{value / most:.2%}"


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
    look: str = ""
    """of the headline: the class of a verdict"""
    gauge: Gauge | None = None
    rows: tuple[Row, ...] = ()
    note: str = ""
    """of the main table"""
    body: tuple[Section | Picture, ...]

    @property
    def compares(self) -> bool:
        """Whether anything is known of an unpruned network."""
        return any(row.unpruned for row in self.rows)


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
    body = [(item, _svg(item)) if isinstance(item, Picture) else (_without_empty_columns(item), None) for item in page.body]
    first = ("Unpruned and shipped" if page.compares else "Shipped",) if page.rows else ()
    contents = (*first, *(item.title for item in page.body if item.title))
    try:
        text = template.render(page=page, body=body, contents=contents, slug=_slug, generator=GENERATOR)
        write_whole(out, text.encode())
    except OSError as error:
        raise DeployError(f"{out} cannot be written: {error.strerror}") from error


def _slug(title: str) -> str:
    """A title as the name of a place on the page."""
    return re.sub(r"\W+", "-", title.lower())


def _without_empty_columns(section: Section) -> Section:
    """A table without the columns in which no line has anything."""
    if not section.columns:
        return section

    def is_whole(line: Sequence[str | Cell]) -> bool:
        return isinstance(line[0], Cell) and line[0].whole

    full = [line for line in section.lines if not is_whole(line)]
    kept = [place for place in range(len(section.columns)) if any(line[place] for line in full)]
    lines = [line if is_whole(line) else [line[place] for place in kept] for line in section.lines]
    return replace(section, columns=tuple(section.columns[place] for place in kept), lines=lines)


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
    # ids are unique in a picture; make them so in the page
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{_slug(picture.title)}-", svg))
