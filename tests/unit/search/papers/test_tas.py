from collections import Counter

from search.papers import tas


def test_the_flops_of_published_shapes_are_what_their_authors_estimated():
    """To the last digit, for CIFAR."""
    rows = {row.row: row for row in tas.rows() if row.table == "estimated_FLOP"}
    assert len(rows) == 8
    for name, row in rows.items():
        exact = row.ours == round(1e6 * float(row.paper))
        assert exact == ("ImageNet" not in name), name
    assert rows["resnet20, CIFAR-10: published shape"].ours == 22_444_472
    assert (
        rows["resnet56, CIFAR-10: published shape"].note
        == "counted as the authors do; as its blocks run this network has 59.8584 M"
    )


def test_the_verdicts_of_all_rows():
    rows = tas.rows()
    verdicts = Counter((row.table, row.verdict) for row in rows)
    assert not any(verdict == "DIFFERS" for _, verdict in verdicts)
    searched = {
        row.row: row.verdict for row in rows if row.quantity == "deployed MACs" and row.table in ("Table 3", "Table 4")
    }
    assert [name for name, verdict in searched.items() if verdict == "EXPLAINED"] == ["resnet56, CIFAR-10: TAS"]
    assert sum(verdict == "SAME" for verdict in searched.values()) == 7


def test_a_shape_counts_its_shortcuts():
    """Blocks that keep their width add nothing; a wider output takes a 1x1 convolution."""
    plain = tas.SearchedNetwork("resnet20", 10, "", " ".join(["16"] * 7 + ["32"] * 6 + ["64"] * 6), (3, 3, 3))
    assert tas.macs(plain) == 40_813_184
    wider = plain._replace(channels=" ".join(["16"] * 6 + ["20"] + ["32"] * 6 + ["64"] * 6))
    second, shortcut, after, across = 16 * 4 * 9 * 1024, 16 * 20 * 1024, 4 * 32 * 9 * 256, 4 * 32 * 256
    assert tas.macs(wider) - tas.macs(plain) == second + shortcut + after + across


def test_the_size_of_the_space_of_resnet164():
    assert next(row.ours for row in tas.rows() if row.quantity == "networks") == 8**163 * 18**3
