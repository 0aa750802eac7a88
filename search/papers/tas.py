"""Figures of TAS (Dong and Yang 2019) beside ours.

FLOPs in its Tables 1, 3 and 4, the shapes published by its authors, and the size of its largest space.

The paper counts multiply-accumulates. For each method, Tables 3 and 4 give the FLOPs and the pruned share of the
unpruned network's; ours is that share computed from the printed FLOPs and our network. The searched shapes are in the
authors' repository (configs/NeurIPS-2019), each with an `estimated_FLOP`. If a shape leaves out blocks, that number
counts the next stage as if it read the last listed block instead of the last one that runs. Accuracies and hours depend
on their own training.
"""

import dataclasses
from typing import Literal, NamedTuple

from search import ops, spaces
from search.papers.row import PaperRow

_UNPUBLISHED = "the shape of this network is not published"


class SearchedNetwork(NamedTuple):
    """A searched network."""

    network: str
    """name here of the network that it was searched from"""
    classes: int
    flops: str
    """`estimated_FLOP`, in millions"""
    channels: str
    """channels of every convolution in order, without shortcuts and including blocks that do not run"""
    depths: tuple[int, ...]
    """number of blocks of each stage that run"""


SHAPES = {
    "CIFAR-10": (
        SearchedNetwork("resnet20", 10, "22.444472", "16 6 4 4 4 4 4 32 32 12 19 32 28 64 64 64 64 64 44", (3, 3, 3)),
        SearchedNetwork(
            "resnet32",
            10,
            "34.945344",
            "16 6 4 12 4 4 16 9 9 6 14 32 32 9 19 28 9 32 19 32 9 64 64 64 64 64 64 64 32 38 32",
            (5, 5, 5),
        ),
        SearchedNetwork(
            "resnet56",
            10,
            "57.93305",
            "16 16 16 14 11 9 16 12 16 6 16 4 8 4 14 6 4 4 4 32 32 32 32 32 32 22 28 32 32 19 9 19 16 9 25 16 9 64 64 "
            "64 64 "
            "64 64 64 64 64 51 19 19 32 19 19 32 19 25",
            (5, 5, 5),
        ),
        SearchedNetwork(
            "resnet164",
            10,
            "173.023672",
            "16 8 16 64 6 16 64 14 16 64 8 16 64 4 16 64 6 16 64 6 16 64 11 11 64 4 14 64 4 4 57 4 16 64 9 12 57 4 16 "
            "64 4 "
            "8 57 6 6 51 6 4 44 6 4 57 6 6 19 32 32 128 32 32 128 32 32 128 9 32 128 32 32 128 25 28 115 12 32 128 32 "
            "32 "
            "128 32 32 128 32 32 102 28 32 128 16 32 128 28 19 128 32 9 51 16 12 102 12 22 115 9 12 51 12 16 38 64 64 "
            "256 "
            "64 64 256 64 64 256 64 64 256 64 64 256 64 64 256 64 64 256 64 64 256 64 64 256 64 64 256 64 57 204 64 25 "
            "179 "
            "19 25 204 44 19 153 38 25 76 19 32 128 19 51 76 57 32 76",
            (13, 15, 13),
        ),
    ),
    "CIFAR-100": (
        SearchedNetwork("resnet20", 100, "22.433792", "16 4 4 4 4 6 4 32 32 9 19 32 28 64 64 64 64 64 64", (3, 3, 3)),
        SearchedNetwork(
            "resnet32",
            100,
            "42.493184",
            "16 4 4 4 14 6 4 8 4 4 4 32 32 9 28 28 28 28 28 32 32 64 64 64 64 64 64 64 64 64 64",
            (5, 5, 5),
        ),
        SearchedNetwork(
            "resnet56",
            100,
            "59.472556",
            "16 16 9 14 16 14 16 8 16 8 14 4 4 4 8 4 6 4 4 32 32 32 28 32 32 32 22 32 32 32 9 25 19 25 12 9 9 64 64 64 "
            "64 "
            "64 64 64 64 64 51 19 19 19 19 25 38 19 19",
            (5, 5, 7),
        ),
    ),
    "ImageNet": (
        SearchedNetwork(
            "resnet-50",
            1000,
            "2291.316289",
            "45 45 30 102 33 60 154 68 70 180 38 38 307 38 38 410 64 128 358 38 51 256 76 76 512 76 76 512 179 256 614 "
            "100 "
            "102 307 179 230 614 204 102 307 153 153 1228 512 512 1434 512 512 1844",
            (3, 4, 5, 3),
        ),
    ),
}
"""Searched networks by data set."""

_TABLE1 = (("Pre-defined", "41.1"), ("Random Search", "42.9"), ("TAS", "42.5"))
"""Method and MACs in millions."""

_TABLE3 = (
    ("resnet20", "LCCL", ("2.61", "36.0"), ("2.73", "33.1")),
    ("resnet20", "SFP", ("2.43", "42.2"), ("2.43", "42.2")),
    ("resnet20", "FPGM", ("2.43", "42.2"), ("2.43", "42.2")),
    ("resnet20", "TAS (D)", ("2.19", "46.2"), ("2.19", "46.2")),
    ("resnet20", "TAS (W)", ("1.99", "51.3"), ("1.92", "52.9")),
    ("resnet20", "TAS", ("2.24", "45.0"), ("2.24", "45.0")),
    ("resnet32", "LCCL", ("4.76", "31.2"), ("4.32", "37.5")),
    ("resnet32", "SFP", ("4.03", "41.5"), ("4.03", "41.5")),
    ("resnet32", "FPGM", ("4.03", "41.5"), ("4.03", "41.5")),
    ("resnet32", "TAS (D)", ("4.08", "41.0"), ("4.08", "41.0")),
    ("resnet32", "TAS (W)", ("3.78", "45.4"), ("3.80", "45.0")),
    ("resnet32", "TAS", ("3.50", "49.4"), ("4.25", "38.5")),
    ("resnet56", "PFEC", ("9.09", "27.6"), None),
    ("resnet56", "LCCL", ("7.81", "37.9"), ("7.63", "39.3")),
    ("resnet56", "AMC", ("6.29", "50.0"), None),
    ("resnet56", "SFP", ("5.94", "52.6"), ("5.94", "52.6")),
    ("resnet56", "FPGM", ("5.94", "52.6"), ("5.94", "52.6")),
    ("resnet56", "TAS", ("5.95", "52.7"), ("6.12", "51.3")),
    ("resnet110", "LCCL", ("16.6", "34.2"), ("17.3", "31.3")),
    ("resnet110", "PFEC", ("15.5", "38.6"), None),
    ("resnet110", "SFP", ("12.1", "52.3"), ("12.1", "52.3")),
    ("resnet110", "FPGM", ("12.1", "52.3"), ("12.1", "52.3")),
    ("resnet110", "TAS", ("11.9", "53.0"), ("12.0", "52.6")),
    ("resnet164", "LCCL", ("17.9", "27.40"), ("19.5", "21.3")),
    ("resnet164", "TAS", ("17.8", "28.10"), ("17.1", "30.9")),
)
"""Network, method, and for CIFAR-10 and CIFAR-100 the MACs in tens of millions and the pruned percentage."""

_TABLE4 = (
    ("resnet-18", "LCCL", "1.19", "34.6"),
    ("resnet-18", "SFP", "1.06", "41.8"),
    ("resnet-18", "FPGM", "1.06", "41.8"),
    ("resnet-18", "TAS", "1.21", "33.3"),
    ("resnet-50", "SFP", "2.38", "41.8"),
    ("resnet-50", "CP", "2.04", "50.0"),
    ("resnet-50", "Taylor", "2.25", "44.9"),
    ("resnet-50", "AutoSlim", "3.00", "26.6"),
    ("resnet-50", "FPGM", "2.36", "42.2"),
    ("resnet-50", "TAS", "2.31", "43.5"),
)
"""Network, method, MACs in billions, and the pruned percentage."""


def rows() -> list[PaperRow]:
    """Return the rows of Tables 1, 3 and 4, of the published shapes, and of the size of ResNet-164's space."""
    return [*_table1(), *_tables(), *_shapes(), _size()]


def macs(shape: SearchedNetwork, *, listed: bool = False) -> int:
    """Return the MACs of a searched network; if input and output of a block differ, its shortcut is a 1x1 convolution.

    Args:
        shape: the network.
        listed: count like the authors: the input width of the next stage is that of a stage's last block, even if that
            does not run.
    """
    space = spaces.get(shape.network, classes=shape.classes)
    stem, *blocks, _ = space.network()
    widths = [int(width) for width in shape.channels.split()]
    first_conv = stem.with_widths(c_out=widths[0])
    total, image, per_block = (
        ops.counts(first_conv).macs,
        ops.output_shape(first_conv),
        3 if blocks[0].op == "bottleneck" else 2,
    )
    stage = number = 0
    for index, block in enumerate(blocks):
        outputs = widths[1 + index * per_block : 1 + (index + 1) * per_block]
        stride = int(block.attr("stride"))
        if (
            index
            and block.widths != blocks[index - 1].widths
            and ops.output_shape(block) != ops.output_shape(blocks[index - 1])
        ):
            stage, number = stage + 1, 0
        number += 1
        if number > shape.depths[stage]:
            image = (outputs[-1], *image[1:]) if listed else image
            continue
        before = image
        for place, width in enumerate(outputs):
            middle = per_block == 2 or place == 1
            conv = ops.conv(image, width, kernel=3 if middle else 1, stride=stride if place == per_block - 2 else 1)
            total, image = total + ops.counts(conv).macs, ops.output_shape(conv)
        if before != image:
            total += ops.counts(ops.conv(before, image[0], kernel=1, stride=stride)).macs
    return total + ops.counts(ops.head(image, shape.classes)).macs


def _shape(data: str, network: str) -> SearchedNetwork | None:
    return next((shape for shape in SHAPES[data] if shape.network == network), None)


def _table1() -> list[PaperRow]:
    searched = _shape("CIFAR-100", "resnet32")
    assert searched
    return [
        _flops("Table 1", f"resnet32, CIFAR-100: {method}", paper, "M", macs(searched) if method == "TAS" else None)
        for method, paper in _TABLE1
    ]


def _flops(
    table: str, row: str, paper: str, unit: Literal["M", "G"], ours: int | None, note: str = "", *, differs: str = ""
) -> PaperRow:
    """Return a row of MACs; `differs` is its note if the two numbers differ."""
    note = note or ("" if ours else _UNPUBLISHED)
    paper_row = PaperRow(table=table, row=row, quantity="deployed MACs", paper=paper, unit=unit, ours=ours, note=note)
    return dataclasses.replace(paper_row, note=differs) if paper_row.verdict == "DIFFERS" else paper_row


_DIGITS = "the difference is within the last printed digit of the FLOPs"
_OTHER = "the ratio is of the unpruned network of that method's own paper, which differs in its shortcuts"
_LISTED = "counted as the authors do; as its blocks run this network has {macs:.6g} M"
_IMAGENET = (
    "ours is as its blocks run, as in Table 4; how the authors' count treats the stage that loses a block is not known"
)
_BOTH = "the published shape, as its blocks run, is not the one that the table has"


def _tables() -> list[PaperRow]:
    """Return the rows of Tables 3 and 4: the pruned shares, and the FLOPs of published shapes."""
    paper_rows: list[PaperRow] = []
    for network, method, *columns in _TABLE3:
        for data, classes, printed in zip(("CIFAR-10", "CIFAR-100"), (10, 100), columns, strict=True):
            if printed:
                name = f"{network}, {data}: {method}"
                paper_rows.append(
                    _pruned(
                        "Table 3",
                        name,
                        printed[1],
                        10 * float(printed[0]),
                        spaces.get(network, classes=classes).macs() / 1e6,
                    )
                )
                shape = _shape(data, network)
                if method == "TAS":
                    paper = f"{10 * float(printed[0]):.{max(0, len(printed[0].partition('.')[2]) - 1)}f}"
                    paper_rows.append(
                        _flops("Table 3", name, paper, "M", macs(shape) if shape else None, differs=_BOTH)
                    )
    for network, method, flops, ratio in _TABLE4:
        name, full = f"{network}, ImageNet: {method}", spaces.get(network).macs() / 1e9
        paper_rows.append(_pruned("Table 4", name, ratio, float(flops), full))
        shape = _shape("ImageNet", network)
        if method == "TAS":
            paper_rows.append(_flops("Table 4", name, flops, "G", macs(shape) if shape else None))
    return paper_rows


def _pruned(table: str, row: str, ratio: str, flops: float, full: float) -> PaperRow:
    """Return a row of the pruned share of the unpruned network's FLOPs, from the printed FLOPs and our network."""
    ours = 100 * (1 - flops / full)
    half = 0.5 * 10 ** -len(f"{flops}".partition(".")[2]) if flops < 10 else 0.05 if flops < 100 else 0.5
    near = abs(ours - float(ratio)) <= 0.1 + 100 * half / full
    return PaperRow(
        table=table,
        row=row,
        quantity="MACs pruned",
        paper=ratio,
        unit="%",
        ours=round(ours, 3),
        note=_DIGITS if near else _OTHER,
    )


def _shapes() -> list[PaperRow]:
    """Return a row of the `estimated_FLOP` of each published shape."""
    paper_rows: list[PaperRow] = []
    for data, shapes in SHAPES.items():
        for shape in shapes:
            is_cifar, running, counted = data != "ImageNet", macs(shape), macs(shape, listed=True)
            note = _LISTED.format(macs=running / 1e6) if running != counted else ""
            ours = counted if is_cifar else running
            name = f"{shape.network}, {data}: published shape"
            paper_rows.append(_flops("estimated_FLOP", name, shape.flops, "M", ours, note if is_cifar else _IMAGENET))
    return paper_rows


def _size() -> PaperRow:
    """Return the size of ResNet-164's space.

    Eight widths of each convolution but the shortcuts, depths of three stages of 18 blocks.
    """
    _, *blocks, _ = spaces.get("resnet164").network()
    size = 8 ** (1 + 3 * len(blocks)) * (len(blocks) // 3) ** 3
    note = "printed as 8163x183: 8^163 * 18^3"
    row = "resnet164: widths and depths"
    return PaperRow(
        table="Section 4.3", row=row, quantity="networks", paper=f"{8**163 * 18**3:.4e}", unit="", ours=size, note=note
    )
