from search.papers import gpunet


def test_parameters_are_the_same_and_other_counters_explained():
    rows = gpunet.rows()
    assert {row.verdict for row in rows if row.quantity == "trained params"} == {"SAME"}
    assert {row.row: row.verdict for row in rows if row.quantity == "deployed MACs"} == {
        "gpunet-0": "EXPLAINED",
        "gpunet-1": "SAME",
        "gpunet-2": "EXPLAINED",
        "gpunet-d1": "EXPLAINED",
        "gpunet-d2": "EXPLAINED",
    }
    assert {row.verdict for row in rows if row.quantity == "latency"} == {"NOT RECOMPUTED"}
