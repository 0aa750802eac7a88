"""How a search's policy went: a picture of the channels that were gone and came back."""

from collections.abc import Sequence
from typing import Any


def paint_returned(figure: Any, returned: Sequence[Sequence[int]], names: Sequence[str], *, colour: str) -> None:
    """One line a group of channels: bars of how many of them came back in each epoch.

    Args:
        figure: of matplotlib; painted on.
        returned: for each epoch of the search, of each group the channels that were gone after the epoch before and are back.
        names: of the groups.
        colour: of the bars.
    """
    most = max(1, *(count for epoch in returned for count in epoch))
    axes = figure.add_subplot()
    epochs = range(1, len(returned) + 1)
    floors = [len(names) - 1 - place for place in range(len(names))]
    for place, floor in enumerate(floors):
        counts = [epoch[place] for epoch in returned]
        axes.bar(epochs, [0.9 * count / most for count in counts], bottom=floor, width=0.8, color=colour)
        axes.axhline(floor, color=colour, linewidth=0.3)
        axes.annotate(str(sum(counts)), (len(returned) + 0.5, floor), xytext=(6, 0), textcoords="offset points", annotation_clip=False)
    axes.set_yticks(floors, list(names))
    axes.set_xlim(0.5, len(returned) + 0.5)
    axes.set_ylim(-0.1, len(names))
    axes.set_xlabel("epoch of the search")
