"""Pruning-as-Search (Li et al. 2022): the GMACs in its Tables 2 and 3.

Accuracies and speeds depend on its own training and GPUs.
"""

from search import spaces
from search.papers.row import PaperRow

_SEARCHED = "the widths that were searched are not published"
_PRUNED = "the widths of this pruned ResNet-50 are not published in this paper"

_TABLE2 = (
    ("RepVGG-B1", "11.8", "repvgg-b1", ""),
    ("RepVGG-A2", "5.1", "repvgg-a2", ""),
    ("ResNet-50", "4.1", "resnet-50", ""),
    ("RepVGG-B0", "3.1", "repvgg-b0", ""),
    ("RepVGG-A1", "2.4", "repvgg-a1", ""),
    ("RepVGG-A0", "1.4", "repvgg-a0", ""),
    ("PaS-A", "4.3", None, _SEARCHED),
    ("PaS-B", "2.9", None, _SEARCHED),
    ("PaS-C", "2.4", None, _SEARCHED),
    ("MobileNet-V2 x1.4", "0.58", "mobilenetv2-1.4", ""),
    ("MobileNet-V2 x1.0", "0.30", "mobilenetv2-1.0", ""),
    ("MobileNet-V2 x0.75", "0.21", "mobilenetv2-0.75", ""),
    ("MNasNet 1.0", "0.31", "mnasnet-1.0", ""),
    (
        "MNasNet 0.75",
        "0.23",
        "mnasnet-0.75",
        "ours is MnasNet-B1 at this multiplier; the paper does not say which network it took",
    ),
    ("PaS-light-A", "0.88", None, _SEARCHED),
    ("PaS-light-B", "0.50", None, _SEARCHED),
    ("PaS-light-C", "0.34", None, _SEARCHED),
)
"""Name, GMACs, the network's name here, and a note."""

_TABLE3 = {
    "MetaPruning": ("3.0", "2.3", "1.0"),
    "AutoSlim": ("3.0", "2.0", "1.0"),
    "ThiNet": ("2.9", "2.1", "1.2"),
    "Uniform": ("3.0", "2.0", "1.0"),
    "EagleEye": ("3.0", "2.0", "1.0"),
    "DMCP": ("2.8", "2.2", "1.1"),
    "Ours": ("3.0", "2.0", "1.0"),
}
"""Method and the GMACs of its three networks."""


def rows() -> list[PaperRow]:
    """Return the rows of Table 2, the baseline in the caption of Table 3, and the rows of Table 3."""
    return [
        *(_row("Table 2", name, macs, space, note) for name, macs, space, note in _TABLE2),
        _row("Table 3", "ResNet-50 baseline", "4.1", "resnet-50", ""),
        *(_row("Table 3", method, macs, None, _PRUNED) for method, group in _TABLE3.items() for macs in group),
    ]


def _row(table: str, name: str, macs: str, space: str | None, note: str) -> PaperRow:
    ours = None if space is None else spaces.get(space).macs()
    return PaperRow(table=table, row=name, quantity="deployed MACs", paper=macs, unit="G", ours=ours, note=note)
