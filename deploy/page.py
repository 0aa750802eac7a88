"""A self-contained HTML page.

A headline, a main table, then sections and pictures in order, regardless of their subject.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from latency import plot
from latency.errors import import_extra
from latency.files import write_atomically
from latency.outputs import GENERATOR, PAGE, require_file

# Colours are placeholders for CSS variables, so that one picture works in light and dark mode; line styles, hatches and
# opacity convey the same as colours.
INK, FIRST, SECOND, LIMIT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {
    INK: "currentColor",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    LIMIT: "var(--limit)",
    PAPER: "var(--paper)",
}
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
    """Return the CSS class of a verdict, which sets its icon and colour; "" for other text."""
    return _LOOKS.get(verdict, "")


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the main table; "" for unknown values."""

    name: str
    unpruned: str
    shipped: str
    verdict: str = ""
    """verdict at the end of `shipped`, such as met; "" for none"""

    @property
    def look(self) -> str:
        """The CSS class of the verdict."""
        return look_of(self.verdict)


@dataclass(frozen=True)
class TableCell:
    """A table cell that is not plain text."""

    text: str
    look: str = ""
    """CSS class: hash, reason or that of a verdict"""
    whole: bool = False
    """whether it spans the whole row"""
    link: str = ""
    """target of the text's link, relative to the page"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a note and a table; without a heading, it continues the previous section."""

    title: str = ""
    note: str = ""
    columns: tuple[str, ...] = ()
    """column headings; empty if the rows need none"""
    lines: Sequence[Sequence[str | TableCell]]
    """rows, each with its heading as the first cell"""
    after: str = ""
    """a note below the table"""
    dense: bool = False
    """whether to use small type"""


@dataclass(frozen=True)
class Bar:
    """A bar of a gauge."""

    name: str
    value: float
    words: str
    look: str
    """CSS classes: `limit`, or `bar` with `chosen` and the class of a verdict"""
    low: float = 0.0
    high: float = 0.0
    """ends of its interval, if it has one"""


@dataclass(frozen=True)
class Gauge:
    """Stacked bars in the head of a page."""

    title: str
    bars: tuple[Bar, ...]
    limit: float | None = None
    """a mark across all bars"""

    def share(self, value: float) -> str:
        """Return a value's length on the page, as a percentage."""
        most = max(end for bar in self.bars for end in (bar.value, bar.high))
        return f"{value / most:.2%}"


@dataclass(frozen=True)
class Chart:
    """A chart of the page, drawn when the page is written."""

    title: str
    caption: str
    height_in: float
    paint: Callable[[Any], None]
    """draws on a matplotlib figure, in the colours of this file"""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Content of a page."""

    title: str
    kind: str
    """kind of subject, for the browser's title"""
    subtitle: str
    headline: str
    look: str = ""
    """CSS class of the headline's verdict"""
    gauge: Gauge | None = None
    rows: tuple[ComparisonRow, ...] = ()
    note: str = ""
    """note on the main table"""
    body: tuple[Section | Chart, ...]

    @property
    def compares(self) -> bool:
        """Whether anything is known about an unpruned network."""
        return any(row.unpruned for row in self.rows)


def require_page(out: str | Path, *, force: bool = False) -> None:
    """Require, before anything is read, that `write_page` can write a page; see `latency.outputs.require_file`.

    Raises:
        LatencyError: the file cannot be written.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    import_extra("jinja2", "report")
    import_extra("matplotlib", "report")
    require_file(out, PAGE, flag="--out", force=force)


def write_page(page: Page, out: str | Path, *, force: bool = False) -> None:
    """Write a page to a file; equal pages give equal bytes.

    Args:
        page: content of the page.
        out: the file; one written by this function before is replaced.
        force: whether to replace any file.

    Raises:
        DeployError: the file cannot be written.
        LatencyError: a file that is not a report is in its place.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    require_page(out, force=force)
    jinja2 = import_extra("jinja2", "report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(resources.files("deploy").joinpath("page.html.j2").read_text("utf-8"))
    body = [
        (item, _svg(item)) if isinstance(item, Chart) else (_without_empty_columns(item), None) for item in page.body
    ]
    first = ("Unpruned and shipped" if page.compares else "Shipped",) if page.rows else ()
    contents = (*first, *(item.title for item in page.body if item.title))
    try:
        text = template.render(page=page, body=body, contents=contents, slug=_slug, generator=GENERATOR)
        write_atomically(out, text.encode())
    except OSError as error:
        raise DeployError(f"{out} cannot be written: {error.strerror}") from error


def _slug(title: str) -> str:
    """Return the anchor of a title on the page."""
    return re.sub(r"\W+", "-", title.lower())


def _without_empty_columns(section: Section) -> Section:
    """Return a table without its empty columns."""
    if not section.columns:
        return section

    def is_whole(line: Sequence[str | TableCell]) -> bool:
        return isinstance(line[0], TableCell) and line[0].whole

    full = [line for line in section.lines if not is_whole(line)]
    kept = [place for place in range(len(section.columns)) if any(line[place] for line in full)]
    lines = [line if is_whole(line) else [line[place] for place in kept] for line in section.lines]
    return replace(section, columns=tuple(section.columns[place] for place in kept), lines=lines)


def _svg(picture: Chart) -> Any:
    """Return the markup of a picture, which needs no escaping."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(plot.WIDTH_IN, picture.height_in), layout="constrained")
        picture.paint(figure)
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    # ids are unique in a picture; make them unique in the page
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{_slug(picture.title)}-", svg))
