"""Tables that fit the terminal: lines break between words, never inside a number, an interval or a verdict."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Column, Table
from rich.text import Text

VERDICTS = {
    **dict.fromkeys(("passed", "met", "SAME"), "green"),
    **dict.fromkeys(("failed", "missed", "DIFFERS", "SLOWER"), "bold red"),
    **dict.fromkeys(("unsure", "UNSURE", "unstable"), "yellow"),
    "FASTER": "cyan",
    "not run": "dim italic",
}
"""Colours of verdicts. The console omits them if it is not a terminal or NO_COLOR is set."""


def coloured(text: str, verdict: str) -> str:
    """Return text in the colour of a verdict, as markup."""
    return f"[{VERDICTS[verdict]}]{text}[/]" if verdict in VERDICTS else text


_NUMBER = r"[+-]?[\d.,]+(?:e[+-]?\d+)?%?(?: (?:µs|ms|s|MiB|dB)\b)?"
_WORDS = re.compile(
    rf"\({_NUMBER} to {_NUMBER}\)[,;.]?"  # an interval, which may be on the line below its figure
    rf"|{_NUMBER} (?:±|to|of) {_NUMBER}[,;.]?"
    r"|[\d.,]+ (?:µs|ms|s|MiB|dB)\b[,;.]?"
    r"|not run\b[,;.:]?"
    r"|\S+?(?<=[,/])(?=[A-Za-z_.])"  # a path or block key may break after a separator
    r"|\S+"
)
_GAP = 2
_LONG = 24
"""Length above which a word may be broken: a path, a hash or the name of a cell."""


@dataclass(frozen=True)
class Heading:
    """Heading of a column."""

    name: str
    right: bool = False
    """whether its cells are right-aligned, like numbers"""


class Grid:
    """A text table; if its longest words do not fit side by side, each row is split into separate lines."""

    def __init__(self, *headings: Heading | str, title: str = "", show_header: bool = True) -> None:
        """Create a table with its headings."""
        self.headings = [Heading(heading) if isinstance(heading, str) else heading for heading in headings]
        self.title, self.show_header = title, show_header
        self.rows: list[list[Text]] = []

    def add(self, *cells: str, verdict: str = "") -> None:
        """Add a row. Cells that are a verdict get its colour; the last cell gets that of `verdict`."""
        texts = [Text(cell, VERDICTS.get(cell, "")) for cell in cells]
        if verdict:
            texts[-1].style = VERDICTS.get(verdict, "")
        self.rows.append(texts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table at the available width and an empty line; called by rich."""
        if self.title:
            yield Text(self.title, "bold")
        names = [heading.name if self.show_header else "" for heading in self.headings]
        columns = [[name, *(row[place].plain for row in self.rows)] for place, name in enumerate(names)]
        widths = _widths(columns, options.max_width - _GAP * (len(names) - 1))
        yield from self._side_by_side(names, widths) if widths else self._one_below_the_other(options.max_width)
        yield ""

    def _side_by_side(self, names: Sequence[str], widths: Sequence[int]) -> Iterator[RenderableType]:
        columns = [
            Column(
                "\n".join(_lines(name, width)), justify="right" if heading.right else "left", width=width, no_wrap=True
            )
            for heading, name, width in zip(self.headings, names, widths, strict=True)
        ]
        view = Table(
            *columns,
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            show_header=self.show_header,
        )
        for row in self.rows:
            view.add_row(
                *(
                    Text("\n".join(_lines(cell.plain, width)), cell.style)
                    for cell, width in zip(row, widths, strict=True)
                )
            )
        yield view

    def _one_below_the_other(self, width: int) -> Iterator[RenderableType]:
        for first, *rest in self.rows:
            yield from (Text(line, "bold") for line in _lines(first.plain, width))
            for heading, cell in zip(self.headings[1:], rest, strict=True):
                if cell.plain:
                    text = f"{heading.name}: {cell.plain}" if heading.name else cell.plain
                    yield from (Text(f"  {line}", cell.style) for line in _lines(text, width - 2))


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Grid:
    """Return names with their values, below a title."""
    grid = Grid("", "", title=title, show_header=False)
    for name, value in rows:
        grid.add(name, value)
    return grid


def _words(text: str) -> list[str]:
    """Split text into unbreakable units, each with its trailing space."""
    starts = [match.start() for match in _WORDS.finditer(text)]
    return [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return column widths that fit, narrowing the widest first, none below its longest word.

    Empty if they cannot fit.
    """
    widths = [max(len(cell) for cell in column) for column in columns]
    least = [
        max((min(_LONG, len(word.rstrip())) for cell in column for word in _words(cell)), default=0)
        for column in columns
    ]
    while sum(widths) > room:
        width, place = max(
            ((width, place) for place, width in enumerate(widths) if width > least[place]), default=(0, -1)
        )
        if place < 0:
            return []
        widths[place] = width - 1
    return widths


def _lines(text: str, width: int) -> list[str]:
    """Wrap text to a width; only longer words are broken."""
    lines = [""]
    for word in _words(text):
        if lines[-1] and len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]
