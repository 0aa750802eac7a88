"""RepVGG (Ding et al. 2021, arXiv:2101.03697).

Parameters and theoretical FLOPs of the deployed networks, Tables 4 and 5.

The paper counts a multiply-accumulate as one. It does not give the parameters of the training form, which are from
OpenMMLab's model zoo, https://mmclassification.readthedocs.io/en/latest/papers/repvgg.html, which publishes the
networks in both forms. The zoo's FLOPs include norms and activations, so they are not compared.
"""

from search import spaces
from search.papers.row import PaperRow

_PAPER = {
    "a0": ("8.30", "1.4"),
    "a1": ("12.78", "2.4"),
    "a2": ("25.49", "5.1"),
    "b0": ("14.33", "3.1"),
    "b1": ("51.82", "11.8"),
    "b1-g2": ("41.36", "8.8"),
    "b1-g4": ("36.12", "7.3"),
    "b2": ("80.31", "18.4"),
    "b2-g4": ("55.77", "11.3"),
    "b3": ("110.96", "26.2"),
    "b3-g4": ("75.62", "16.1"),
}
"""Parameters in millions, FLOPs in billions."""

_ZOO = {
    "a0": "9.11",
    "a1": "14.09",
    "a2": "28.21",
    "b0": "15.82",
    "b1": "57.42",
    "b1-g2": "45.78",
    "b1-g4": "39.97",
    "b2": "89.02",
    "b2-g4": "61.76",
    "b3": "123.09",
    "b3-g4": "83.83",
}
"""Parameters of the training form, in millions."""


def rows() -> list[PaperRow]:
    """Return three rows per network."""
    paper_rows: list[PaperRow] = []
    for name, (params, macs) in _PAPER.items():
        space = spaces.get(f"repvgg-{name}")
        paper, row = "Tables 4 and 5", space.name
        paper_rows += [
            PaperRow(table=paper, row=row, quantity="deployed params", paper=params, unit="M", ours=space.parameters()),
            PaperRow(table=paper, row=row, quantity="deployed MACs", paper=macs, unit="G", ours=space.macs()),
            PaperRow(
                table="OpenMMLab",
                row=row,
                quantity="trained params",
                paper=_ZOO[name],
                unit="M",
                ours=space.parameters(deployed=False),
            ),
        ]
    return paper_rows
