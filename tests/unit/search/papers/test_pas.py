from collections import Counter

from search.papers import pas


def test_the_rows_of_tables_2_and_3():
    rows = pas.rows()
    assert Counter(row.table for row in rows) == {"Table 2": 17, "Table 3": 22}
    verdicts = {row.row: row.verdict for row in rows if row.table == "Table 2"}
    assert [name for name, verdict in verdicts.items() if verdict == "NOT RECOMPUTED"] == [
        "PaS-A",
        "PaS-B",
        "PaS-C",
        "PaS-light-A",
        "PaS-light-B",
        "PaS-light-C",
    ]
    assert [name for name, verdict in verdicts.items() if verdict == "EXPLAINED"] == ["MNasNet 0.75"]
    assert [row.row for row in rows if row.table == "Table 3" and row.verdict == "SAME"] == ["ResNet-50 baseline"]
