"""Sweeps of every version are read."""

from pathlib import Path

import pytest

from search import SearchError, sweep

KEPT = Path(__file__).parent


def test_a_kept_sweep_is_read():
    found = sweep.read(KEPT / "sweep-1")
    assert (found.schema, found.method) == ("sweep/1", "pas")
    assert [(member.name, member.leader, member.settings) for member in found.members] == [
        ("0.5x_beta=0.1_seed=0", "0.5x_beta=0.1_seed=0", {"beta": "0.1"}),
        ("0.5x_beta=0.3_seed=0", "0.5x_beta=0.1_seed=0", {"beta": "0.3"}),
    ]
    assert [row.status for row in sweep.outcomes(KEPT / "sweep-1")] == ["unfinished"] * 2


@pytest.mark.parametrize(
    ("old", "new"),
    [('"method"', '"more": 1, "method"'), ('"name": "0.5x', '"name": "../0.5x'), ('"name": "0.5x', '"name": "..')],
)
def test_an_unknown_field_or_a_name_that_leads_elsewhere_is_damage(old, new, tmp_path):
    text = (KEPT / "sweep-1" / "sweep.json").read_text()
    assert old in text
    (tmp_path / "sweep.json").write_text(text.replace(old, new))
    with pytest.raises(SearchError, match="sweep.json"):
        sweep.read(tmp_path)
