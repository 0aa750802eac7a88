"""VP-DARTS (2024): the test accuracies of known cells in its Tables 1 to 3.

The paper trains no cells but looks up the searched ones in NAS-Bench-201. Ours are the benchmark's records of named
cells, so a row with verdict SAME shows which cell the paper's number belongs to. Means over searches with unpublished
cells are compared with those of our own searches on a smaller supernet (`benchmarks/nasbench201.py`). Validation
accuracies and hours are not compared.
"""

from typing import get_args

from search.papers.row import Accuracy, PaperRow

SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
"""The only one of the 15,625 cells with the accuracies that the paper prints for DrNAS, beta-DARTS and its own
search."""
OPTIMAL = "highest accuracy of all 15,625 cells"

RECORDED = {
    SKIPS: (54.2967, 15.6067, 16.3222),
    BEST: (94.3633, 73.5133, 46.3444),
    OPTIMAL: (94.3733, 73.5133, 47.3111),
}
"""Test accuracies in percent after 200 epochs by cell, means over the benchmark's seeds."""

SEARCHED = {
    "random search": (92.53, 68.78, 41.03),
    "fixed K, loss": (93.91, 71.68, 44.86),
    "VP-DARTS, all looks": (94.03, 72.18, 45.03),
    "hard, at once": (93.18, 71.16, 43.65),
    "hard, 5-3-2": (93.17, 69.9, 43.06),
    "alpha as criterion": (91.22, 65.79, 37.98),
    "adjustable K, accuracy": (93.52, 70.64, 41.88),
}
"""Mean test accuracies of our own searches in percent over five seeds, by variant in benchmarks/nasbench201.md."""

_OURS = (
    "mean over searches: the paper's with 16 channels, five cells a stage, 32x32 and all images of CIFAR-10; ours with "
    "8 channels, one "
    "cell, 16x16 and 6,000 images, importance by loss where nothing else is said (benchmarks/nasbench201.md)"
)
_RECORDED_CELLS = "Table 1, ours of the cell as NAS-Bench-201 records it: 200 epochs, mean of its seeds"
_OTHERS = "mean over searches whose cells are not published, of a method that is not here"

_TABLE1 = (
    ("Random (baseline)", ("93.70", "71.04", "44.57"), "random search", _OURS),
    ("Reinforce", ("93.85", "71.71", "45.24"), None, _OTHERS),
    ("Genetic", ("93.92", "71.84", "45.54"), None, _OTHERS),
    ("DARTS (1st), a skip on every edge", ("54.30", "15.61", "16.32"), SKIPS, ""),
    ("DARTS (2nd), a skip on every edge", ("54.30", "15.61", "16.32"), SKIPS, ""),
    ("SNAS", ("92.77", "69.34", "43.16"), None, _OTHERS),
    ("PC-DARTS", ("93.41", "67.48", "41.31"), None, _OTHERS),
    ("SGAS", ("88.33", "70.76", "43.04"), None, _OTHERS),
    ("iDARTS", ("93.58", "70.83", "40.89"), None, _OTHERS),
    ("ReNAS", ("93.99", "72.12", "45.97"), None, _OTHERS),
    ("DARTS-", ("93.80", "71.53", "45.12"), None, _OTHERS),
    ("DrNAS, a skip from input to output and 3x3", ("94.36", "73.51", "46.34"), BEST, ""),
    ("beta-DARTS, a skip from input to output and 3x3", ("94.36", "73.51", "46.34"), BEST, ""),
    ("VP-DARTS (Fixed K)", ("94.15", "72.77", "45.91"), "fixed K, loss", _OURS),
    (
        "VP-DARTS (Adjustable K), ours by the mean of all looks",
        ("94.36", "73.51", "46.34"),
        "VP-DARTS, all looks",
        _OURS,
    ),
    ("VP-DARTS (Adjustable K), a skip from input to output and 3x3", ("94.36", "73.51", "46.34"), BEST, ""),
    ("Optimal", ("94.37", "73.51", "47.31"), OPTIMAL, ""),
)
"""Name, test accuracies on CIFAR-10, CIFAR-100 and ImageNet16-120, the cell or the variant of our searches, and a
note."""

_TABLE2 = (
    ("One-shot hard pruning", ("91.41", "67.97", "37.99"), "hard, at once"),
    ("Progressive hard pruning", ("93.11", "70.29", "43.55"), "hard, 5-3-2"),
    ("Soft pruning", ("94.15", "72.77", "45.91"), "fixed K, loss"),
)
_TABLE3 = (
    ("Alpha value, ours with adjustable K", ("88.86", "62.99", "35.11"), "alpha as criterion"),
    ("Validation accuracy, ours with adjustable K", ("94.15", "72.77", "45.91"), "adjustable K, accuracy"),
)


_Method = tuple[str, str, tuple[str, str, str], str | None, str]
"""Table, name, test accuracies on the three data sets, the cell or the variant of our searches, and a note."""

_QUANTITIES: tuple[Accuracy, ...] = get_args(Accuracy)


def rows() -> list[PaperRow]:
    """Return three rows per method, in the order of the tables."""
    methods: list[_Method] = [
        *((_RECORDED_CELLS, name, printed, cell, note) for name, printed, cell, note in _TABLE1),
        *(("Table 2", name, printed, variant, _OURS) for name, printed, variant in _TABLE2),
        *(("Table 3", name, printed, variant, _OURS) for name, printed, variant in _TABLE3),
    ]
    ours = RECORDED | SEARCHED
    return [
        PaperRow(
            table=table,
            row=name,
            quantity=quantity,
            paper=accuracy,
            unit="%",
            ours=ours[cell][place] if cell else None,
            note=note,
        )
        for table, name, printed, cell, note in methods
        for place, (quantity, accuracy) in enumerate(zip(_QUANTITIES, printed, strict=True))
    ]
