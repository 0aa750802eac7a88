from collections import Counter

from search.papers import repvgg


def test_every_network_of_the_paper_has_three_equal_numbers():
    rows = repvgg.rows()
    assert Counter(row.verdict for row in rows) == {"SAME": 33}
    assert set(Counter(row.row for row in rows).values()) == {3}
    b1 = {row.quantity: (row.paper, row.ours) for row in rows if row.row == "repvgg-b1"}
    assert b1 == {
        "deployed params": ("51.82", 51_829_480),
        "deployed MACs": ("11.8", 11_815_485_440),
        "trained params": ("57.42", 57_415_016),
    }
