import pytest
from matplotlib.figure import Figure

from deploy.page import LIMIT
from latency.units import MICROSECONDS
from search import Choice, size_pictures
from search.record import EpochDone

FOUND = Choice(widths={"0.conv": 16}, depths={"stage1": 1})


def drawn(picture):
    figure = Figure(layout="constrained")
    picture.paint(figure)
    figure.draw_without_rendering()
    return figure


def epoch(number: int, share: float, *, latency_us: float | None = 10.0, phase: str = "search") -> EpochDone:
    """A layer of 8 or 16 channels, one that is left out in the end, and a stage of one or two blocks."""
    figures = {
        "p.0.conv.8": 1 - share,
        "p.0.conv.16": share,
        "p.1.body.first.conv.4": 0.5,
        "p.1.body.first.conv.8": 0.5,
    }
    figures |= {
        "p.stage1.1": share,
        "p.stage1.2": 1 - share,
        "gap": 2 * share - 1,
        "expected": 30.0 * share,
        "most_probable": 20.0,
    }
    return EpochDone(
        phase=phase,
        epoch=number,
        epochs=2,
        loss=1.0,
        train_score=0.5,
        score=0.5,
        score_error=0.0,
        choice=FOUND,
        latency_us=latency_us,
        macs=1000,
        figures=figures if phase == "search" else {},
    )


HISTORY = (epoch(1, 0.5), epoch(2, 0.9), epoch(1, 0.0, phase="finetune"))


def test_the_cost_and_the_gap_are_drawn():
    decision, *_ = size_pictures.over_time(HISTORY, MICROSECONDS)
    top, bottom = drawn(decision).axes
    assert {line.get_label(): list(line.get_ydata()) for line in top.get_lines()} == {
        "expected": [15, 27],
        "most probable": [20, 20],
    }
    assert list(bottom.get_lines()[0].get_ydata()) == [0, 0.8]
    assert top.get_ylabel() == "cost, µs"
    without_table = [epoch(1, 0.5, latency_us=None)]
    assert (
        drawn(next(iter(size_pictures.over_time(without_table, MICROSECONDS)))).axes[0].get_ylabel() == "million MACs"
    )


def test_expected_sizes_are_shares_of_the_largest_and_what_was_found_stands_behind_them():
    _, sizes, _ = size_pictures.over_time(HISTORY, MICROSECONDS)
    axes, legend = drawn(sizes).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.conv", "1.body.first.conv", "stage1"]
    assert [text.get_text() for text in axes.texts] == ["16 of 16", "left out", "1 of 2"]
    assert axes.collections[0].get_array().data.ravel() == pytest.approx(
        [12 / 16, 15.2 / 16, 6 / 8, 6 / 8, 1.5 / 2, 1.1 / 2]
    )
    assert legend.get_ylabel() == "share of the largest"


def test_distributions_are_drawn_over_time_with_a_dot_where_decided():
    *_, shares = size_pictures.over_time(HISTORY, MICROSECONDS)
    conv, gone, stage = drawn(shares).axes[:3]
    assert conv.collections[0].get_array().data.ravel() == pytest.approx([0.5, 0.1, 0.5, 0.9])
    dots = [
        [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines() if line.get_color() == LIMIT]
        for axes in (conv, gone, stage)
    ]
    assert dots == [[(2, 1)], [], [(2, 0)]]
    assert [label.get_text() for label in conv.get_yticklabels()] == ["8", "16"]


def test_methods_without_distributions_have_no_such_picture():
    assert not list(size_pictures.over_time([HISTORY[-1]], MICROSECONDS))
