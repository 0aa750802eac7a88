from matplotlib.figure import Figure

from deploy.policy import paint_returned


def test_each_group_has_a_line_with_what_came_back():
    figure = Figure()
    paint_returned(figure, [(0, 2), (4, 0), (0, 1)], ("stem", "head"), colour="black")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "head"]
    assert [text.get_text() for text in axes.texts] == ["4", "3"]
    heights = [[round(bar.get_height(), 3) for bar in bars] for bars in axes.containers]
    assert heights == [[0, 0.9, 0], [0.45, 0, 0.225]]
    assert [bars[0].get_y() for bars in axes.containers] == [1, 0]
