import pytest

from search.papers.row import PaperRow


def row(paper, ours, note=""):
    return PaperRow(table="Table 1", row="a", quantity="deployed MACs", paper=paper, unit="G", ours=ours, note=note)


@pytest.mark.parametrize(
    ("paper", "ours", "verdict"),
    [
        ("1.4", 1_361_451_008, "SAME"),
        ("12.78", 12_789_000_000, "SAME"),
        ("12.78", 12_791_000_000, "DIFFERS"),
        ("12.78", 12_769_000_000, "DIFFERS"),
        ("3", 3_900_000_000, "SAME"),
        ("3.0", 3_100_000_001, "DIFFERS"),
        ("4.", 4_900_000_000, "SAME"),
        ("7.1e3", 7_190_000_000_000, "SAME"),
        ("7.1e3", 7_200_000_000_001, "DIFFERS"),
    ],
)
def test_digits_may_be_rounded_or_cut_off(paper, ours, verdict):
    assert row(paper, ours).verdict == verdict


def test_a_note_explains_a_difference_and_nothing_else():
    assert row("2.0", 3_000_000_000, "another network").verdict == "EXPLAINED"
    assert row("3.0", 3_000_000_000, "another network").verdict == "SAME"
    assert row("3.0", None, "no widths").verdict == "NOT RECOMPUTED"
    assert row("3.0", None, "no widths").difference is None


def test_the_difference_is_in_the_papers_unit():
    assert row("1.4", 1_361_451_008).difference == pytest.approx(-0.038548992)
