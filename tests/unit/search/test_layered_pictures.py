import pytest
from matplotlib.figure import Figure

from deploy.page import LIMIT, SECOND
from search import Choice, layered_pictures
from search.record import EpochDone

from .conftest import make_layers

SPACE = make_layers()
FOUND = Choice(options={"a": "conv_k5", "b": "irb_k5_se", "c": "skip"}, widths={"b": 16})


def drawn(picture):
    figure = Figure(layout="constrained")
    picture.paint(figure)
    figure.draw_without_rendering()
    return figure


def epoch(number, figures, choice=FOUND):
    return EpochDone(
        phase="search",
        epoch=number,
        epochs=3,
        loss=1.0,
        train_score=0.5,
        score=0.5,
        score_error=0.0,
        choice=choice,
        latency_us=10.0,
        macs=1000,
        figures={name: float(value) for name, value in figures.items()},
    )


HISTORY = (
    epoch(1, {"threshold": 0.2, "p.c.irb_k3": 0.7, "p.c.irb_k3_se": 0.3, "small.b.irb_k5_se": 8, "large.b.irb_k5_se": 32, "cost": 1.0}),
    epoch(2, {"threshold": 0.4, "p.c.irb_k3": 0.4, "p.c.skip": 0.6, "small.b.irb_k5_se": 16, "large.b.irb_k5_se": 24, "small.c.irb_k3": 8,
              "large.c.irb_k3": 16}),
    epoch(3, {"threshold": 0.6, "small.b.irb_k5_se": 16, "large.b.irb_k5_se": 24}),
)  # fmt: skip


def test_a_bar_of_the_network_is_as_long_as_its_expansion():
    (axes,) = drawn(layered_pictures.network(SPACE, FOUND)).axes
    bars = {round(bar.get_y() + 0.36): bar for bar in axes.patches if bar.get_facecolor()[3]}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "a", "b", "c", "tail"]
    assert {place: bar.get_width() for place, bar in bars.items()} == {0: 1, 1: 1, 2: 16 / 4, 4: 1}
    assert bars[2].get_linewidth() > 2 * bars[1].get_linewidth()  # squeeze-and-excite
    assert bars[1].get_facecolor() == bars[2].get_facecolor() > bars[0].get_facecolor()  # kernels 5, 5, 3
    frames = [bar.get_width() for bar in axes.patches if not bar.get_facecolor()[3]]
    assert frames == [1, 1, 32 / 4, 1]
    texts = [text.get_text() for text in axes.texts]
    assert "skipped" in texts
    assert "irb, 4 → 16 → 6 / 2" in texts


def test_blocks_begin_equal_and_end_below_the_threshold():
    blocks, _ = layered_pictures.over_time(SPACE, HISTORY)
    figure = drawn(blocks)
    lines = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()), line) for line in figure.axes[0].get_lines()
    }
    assert figure.axes[0].get_title() == "c"
    assert {name: line[:2] for name, line in lines.items()} == {
        "k3": ([0, 1, 2], [0.5, 0.7, 0.4]),
        "k3 se": ([0, 1], [0.5, 0.3]),
        "skip": ([1, 2], [0.5, 0.6]),
        "threshold": ([1, 2, 3], [0.2, 0.4, 0.6]),
    }
    assert (lines["skip"][2].get_color(), lines["threshold"][2].get_color()) == (SECOND, LIMIT)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["k3", "k3 se", "skip", "threshold"]


def test_masks_close_in_on_the_width_that_ships():
    _, masks = layered_pictures.over_time(SPACE, HISTORY)
    figure = drawn(masks)
    ends, skipped = figure.axes[:2]
    assert (ends.get_title(), skipped.get_title()) == ("b", "c")
    small, large, ships = ends.get_lines()
    assert (list(small.get_ydata()), list(large.get_ydata())) == ([8, 16, 16], [32, 24, 24])
    assert (list(ships.get_xdata()), list(ships.get_ydata()), ships.get_color()) == ([3], [16], LIMIT)
    assert len(skipped.get_lines()) == 2


@pytest.mark.parametrize("history", [(), (epoch(1, {"cost": 1.0}),)])
def test_a_method_that_says_nothing_of_blocks_has_no_pictures_of_them(history):
    assert list(layered_pictures.over_time(SPACE, history)) == []
