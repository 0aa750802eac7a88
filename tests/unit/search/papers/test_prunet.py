from collections import Counter

import pytest

from search import spaces
from search.papers import prunet

ROWS = prunet.rows()


def test_the_sizes_of_the_space_are_the_papers_but_for_one():
    """3^2*9^17 = 1.5e17 counts 17 skips, the formula of the whole space 12."""
    found = {row.row.partition(":")[0]: (row.paper, row.verdict) for row in ROWS if row.quantity == "networks"}
    assert found == {
        "FBNet": ("9e15", "SAME"),
        "1st optimization": ("7.1e38", "SAME"),
        "2nd optimization": ("9e15", "SAME"),
        "3rd optimization": ("1.5e17", "EXPLAINED"),
        "all optimizations": ("1.7e39", "SAME"),
        "all optimizations / FBNet": ("1.9e23", "SAME"),
    }
    sizes = {row.row.partition(":")[0]: row.ours for row in ROWS if row.quantity == "networks"}
    assert (sizes["FBNet"], sizes["3rd optimization"]) == (2**2 * 8**17, 3**2 * 8**5 * 9**12)


def test_networks_that_are_known_have_their_parameters():
    known = {
        row.row: (row.paper, row.ours, row.verdict) for row in ROWS if row.quantity == "trained params" and row.ours
    }
    assert known == {
        "GPUNet-0": ("11.9", 11_885_432, "SAME"),
        "GPUNet-1": ("12.7", 12_704_192, "SAME"),
        "GPUNet-2": ("25.8", 25_798_704, "SAME"),
        "ResNet-50": ("28.09", 25_557_032, "EXPLAINED"),
        "ResNet-101": ("45", 44_549_160, "SAME"),
    }


def test_28_09_million_are_those_of_se_resnet_50():
    gates = sum(
        layers * (2 * width * width // 16 + width // 16 + width)
        for layers, width in ((3, 256), (4, 512), (6, 1024), (3, 2048))
    )
    assert gates == 2_530_992
    assert f"{(spaces.get('resnet-50').parameters(deployed=False) + gates) / 1e6:.2f}" == "28.09"


def test_the_losses_of_prunets_are_their_latency_and_a_cross_entropy_that_falls():
    losses = [row for row in ROWS if row.quantity == "search loss"]
    assert Counter(row.verdict for row in losses) == {"EXPLAINED": 7, "NOT RECOMPUTED": 21}
    rest = [float(row.paper) - row.ours for row in losses if row.ours]
    assert rest == pytest.approx([0.635, 0.557, 0.529, 0.477, 0.418, 0.412, 0.402], abs=0.001)
    assert rest == sorted(rest, reverse=True)


def test_the_lowest_loss_of_an_alpha_is_of_a_prunet():
    named = [row.row for row in ROWS if row.quantity == "search loss" and row.ours]
    assert named[0] == "PRUNET-0: alpha 2.0 phi 1.1 lambda 0.55"
    assert named[3] == "PRUNET-3: alpha 0.8 phi 1.1 lambda 0.4"
    assert [name.partition(":")[0] for name in named] == [f"PRUNET-{number}" for number in range(7)]


def test_the_rows_of_prunets_themselves_are_not_recomputed():
    rows = [row for row in ROWS if row.table == "Table 2" and row.row.startswith("PRUNET")]
    assert len(rows) == 3 * 7
    assert {row.verdict for row in rows} == {"NOT RECOMPUTED"}
