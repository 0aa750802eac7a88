"""PRUNET (2022): sizes of its networks and spaces, Tables 2 and 3, and the losses of its searches, Table 6.

The second term of a search's loss, CE + alpha * (ln LAT)^beta with the latency in microseconds, can be recomputed if
the network's latency is printed; the rest is the cross-entropy. Accuracies, latencies on a V100 and search times cannot
be recomputed. Neither can the PRUNETs: Figure 3 shows their blocks, but the text does not give their hidden widths and
kernels.
"""

import math

from search import spaces
from search.papers.row import PaperRow
from search.spaces import Layered

BETA = 0.6

_DRAWN = "its blocks are drawn in Figure 3, and their hidden widths are not printed"
_V100 = "TensorRT 8.0.1.6 on a V100, which is not here; `lathe export` measures a network on the device at hand"
_COUNTER = (
    "the FLOPs are by a counter that is not named; ours are the multiply-accumulates of convolutions and linear layers"
)
_RESNET50 = (
    "28.09 M are those of SE-ResNet-50: squeeze-and-excite of reduction 16 in every block adds 2,530,992 to ResNet-50"
)
_RESNET101 = (
    "7.6 G are those of the original, whose bottlenecks have their stride in the first 1x1 convolution; ours in the 3x3"
)
_ELSEWHERE = "not a network that is known here by name"

_TABLE2 = (
    ("EfficientNet-B0", "5.28", "0.38", None),
    ("EfficientNetX-B0-GPU", "7.6", "0.91", None),
    ("RegNetY-1.6GF", "11.2", "1.6", None),
    ("OFA 389", "8.4", "0.39", None),
    ("EfficientNetX-B1-GPU", "9.6", "1.58", None),
    ("OFA 482", "9.1", "0.48", None),
    ("FBNetV3-B", "8.6", "0.46", None),
    ("EfficientNetX-B2-GPU", "10", "2.3", None),
    ("OFA 595", "9.1", "0.6", None),
    ("EfficientNet-B2", "9.2", "1", None),
    ("ResNet-50", "28.09", "4.", "resnet-50"),
    ("GPUNet-0", "11.9", "3.25", "gpunet-0"),
    ("GPUNet-1", "12.7", "3.3", "gpunet-1"),
    ("RegNetY-32GF", "145", "32.3", None),
    ("EfficientNetX-B3-GPU", "13.3", "4.3", None),
    ("EfficientNet-B3", "12", "1.8", None),
    ("ResNet-101", "45", "7.6", "resnet-101"),
    ("FBNetV3-F", "13.9", "1.18", None),
    ("GPUNet-2", "25.8", "8.38", "gpunet-2"),
    ("EfficientNetV2-S", "22", "8.8", None),
)
"""Name, parameters in millions, FLOPs in billions, and the network's name here."""

_PRUNETS = (
    ("0.48", "11.3", "2.10"),
    ("0.56", "14.8", "2.57"),
    ("0.66", "18.6", "3.31"),
    ("0.77", "20.8", "4.05"),
    ("0.91", "24.0", "4.25"),
    ("1.07", "27.5", "5.29"),
    ("1.28", "31.1", "7.36"),
)
"""Latency in milliseconds, parameters in millions and FLOPs in billions of PRUNET-0 to PRUNET-6, Table 2."""

_PAIRS = ("phi 1.0 lambda 1.0", "phi 1.1 lambda 0.85", "phi 1.1 lambda 0.55", "phi 1.1 lambda 0.4")
_TABLE6 = (
    ("2.0", ("6.7149", "6.6316", "6.5968", "6.6241")),
    ("1.2", ("4.2938", "4.1876", "4.2139", "4.2039")),
    ("1.0", ("3.6352", "3.6015", "3.6074", "3.6138")),
    ("0.8", ("3.0027", "2.9932", "2.9762", "2.9692")),
    ("0.6", ("2.3528", "2.3394", "2.316", "2.3723")),
    ("0.4", ("1.7154", "1.7201", "1.7296", "1.6946")),
    ("0.2", ("1.0573", "1.0573", "1.0687", "1.0531")),
)
"""Alpha, and the loss for each phi and lambda. The lowest loss of the last three is that of a PRUNET; lower alphas give
slower networks, so the rows are PRUNET-0 to PRUNET-6 in this order."""


def rows() -> list[PaperRow]:
    """Return the rows of Table 2, of the search spaces, and of Table 6."""
    return [*_networks(), *_sizes(), *_losses()]


def latency_term(alpha: float, us: float) -> float:
    """Return the latency term of a search's loss for a latency in microseconds."""
    return alpha * math.log(us) ** BETA


def _networks() -> list[PaperRow]:
    paper_rows: list[PaperRow] = []
    for name, params, macs, here in _TABLE2:
        space = here and spaces.get(here)
        note = "" if space else _ELSEWHERE
        paper_rows += [
            PaperRow(
                table="Table 2",
                row=name,
                quantity="trained params",
                paper=params,
                unit="M",
                ours=space.parameters(deployed=False) if space else None,
                note=note or (_RESNET50 if here == "resnet-50" else ""),
            ),
            PaperRow(
                table="Table 2",
                row=name,
                quantity="deployed MACs",
                paper=macs,
                unit="G",
                ours=space.macs() if space else None,
                note=note or (_RESNET101 if here == "resnet-101" else _COUNTER),
            ),
        ]
    for number, (ms, params, macs) in enumerate(_PRUNETS):
        table, row = "Table 2", f"PRUNET-{number}"
        paper_rows += [
            PaperRow(table=table, row=row, quantity="latency", paper=ms, unit="ms", note=_V100),
            PaperRow(table=table, row=row, quantity="trained params", paper=params, unit="M", note=_DRAWN),
            PaperRow(table=table, row=row, quantity="deployed MACs", paper=macs, unit="G", note=_DRAWN),
        ]
    return paper_rows


def _sizes() -> list[PaperRow]:
    """Return the rows of Table 3, Section 3.1 and Table 6.

    By the layers of Section 3.1's formula and by those of Section 4.1.1.
    """
    space, default = spaces.get("prunet-formula"), spaces.get("prunet")
    assert isinstance(space, Layered)
    assert isinstance(default, Layered)
    widths = math.prod(len(layer.blocks()) for layer in space.layers)
    candidates = [(_candidates(len(layer.options), layer.options[0].hidden), layer.skippable) for layer in space.layers]
    fbnet = math.prod(count for count, _ in candidates)
    skips = math.prod(count + skippable for count, skippable in candidates)
    everywhere = (
        "the paper counts a skip in every inverted residual, 3^2*9^17; ours has none where input and output shape "
        "differ"
    )
    deepest = sum("irb" in layer.options[0].name for layer in default.layers)
    table = "Table 3"
    return [
        _size(table, "FBNet: two candidates of each multi-block", "9e15", fbnet),
        _size(table, "1st optimization: every hidden width", "7.1e38", widths),
        _size(table, "2nd optimization: blocks are pruned", "9e15", fbnet),
        _size(table, "3rd optimization: layers are skipped", "1.5e17", skips, everywhere),
        _size(table, "all optimizations", "1.7e39", space.size()),
        _size("Section 3.1", "all optimizations / FBNet", "1.9e23", space.size() / fbnet),
        PaperRow(
            table="Table 6",
            row="deepest network found",
            quantity="inverted residuals",
            paper="18",
            unit="",
            ours=deepest,
        ),
    ]


def _candidates(options: int, hidden: tuple[int, ...]) -> int:
    """Return the number of candidates of a layer if each multi-block has two hidden widths instead of all."""
    return options * (2 if hidden else 1)


def _size(table: str, row: str, paper: str, ours: int | float, note: str = "") -> PaperRow:
    return PaperRow(table=table, row=row, quantity="networks", paper=paper, unit="", ours=ours, note=note)


def _losses() -> list[PaperRow]:
    paper_rows: list[PaperRow] = []
    for (alpha, losses), (ms, _, _) in zip(_TABLE6, _PRUNETS, strict=True):
        best = min(losses[1:], key=float)
        for pair, loss in zip(_PAIRS, losses, strict=True):
            row = f"alpha {alpha} {pair}"
            if loss != best:
                note = "the latency of this network is not printed"
                paper_rows.append(
                    PaperRow(table="Table 6", row=row, quantity="search loss", paper=loss, unit="", note=note)
                )
                continue
            term = round(latency_term(float(alpha), 1000 * float(ms)), 4)
            note = (
                f"ours is {alpha} * (ln {1000 * float(ms):.0f} us)^{BETA}; the rest, {float(loss) - term:.3f}, is the "
                "cross-entropy"
            )
            row = f"PRUNET-{len(paper_rows) // len(_PAIRS)}: {row}"
            paper_rows.append(
                PaperRow(table="Table 6", row=row, quantity="search loss", paper=loss, unit="", ours=term, note=note)
            )
    return paper_rows
