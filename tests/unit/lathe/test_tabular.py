import re

import pytest
from rich.console import Console

from lathe.tabular import Grid, Heading, coloured, facts

VALIDATION = (
    ("trained", "fp64", "", "1e-10", "", "99.72% (98.44% to 99.95%)", "reference"),
    ("squeezed", "fp64", "7.1e-16", "1e-10", "100.00% (98.9% to 100.0%)", "99.72% (98.44% to 99.95%)", "passed"),
    ("engine", "fp16", "", "1e-02", "", "", "not run"),
)


def shown(grid, width, **options):
    console = Console(width=width, soft_wrap=True, highlight=False, **options)
    with console.capture() as capture:
        console.print(grid)
    return capture.get()


def validation():
    grid = Grid(
        "step",
        "type",
        "against first",
        Heading("limit", right=True),
        "same top-1",
        "accuracy",
        "verdict",
        title="out/bundle",
    )
    for row in VALIDATION:
        grid.add(*row)
    return grid


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_lines_fit_and_no_number_interval_or_verdict_is_broken(width):
    text = shown(validation(), width)
    assert max(map(len, text.splitlines())) <= width
    for row in VALIDATION:
        parts = [part for cell in row for part in re.split(r" (?=\()", cell) if part]
        assert all(re.search(rf"(?<!\S){re.escape(part)}(?!\S)", text) for part in parts)


def test_a_validation_fits_80_columns_side_by_side_with_intervals_below_their_figures():
    assert re.search(
        r"^squeezed +fp64 +7.1e-16 +1e-10 +100.00% +99.72% +passed *$", shown(validation(), 80), re.MULTILINE
    )


def test_where_nothing_fits_side_by_side_a_row_is_lines_of_its_own():
    assert "squeezed\n  type: fp64\n  against first: 7.1e-16\n" in shown(validation(), 30)


def test_long_words_are_broken_behind_separators_first():
    text = shown(
        facts(
            "facts", [("table", "profiles/amd-epyc-zen4-1thread/repvgg-mini.fp32.latency.jsonl"), ("sha256", "0" * 64)]
        ),
        48,
    )
    assert max(map(len, text.splitlines())) <= 48
    assert "table   profiles/amd-epyc-zen4-1thread/" in text
    assert text.replace("\n", "").replace(" ", "").endswith("0" * 64)


def test_verdicts_have_colours_on_a_terminal_alone(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b[32mpassed" in shown(validation(), 80, force_terminal=True, color_system="standard")
    assert "\x1b" not in shown(validation(), 80, force_terminal=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in shown(validation(), 80, force_terminal=True)
    assert (coloured("budget missed", "missed"), coloured("no budget", "no budget")) == (
        "[bold red]budget missed[/]",
        "no budget",
    )
