import json
from dataclasses import replace

import pytest

from latency.coverage import Covered, Proof
from lathe import render
from search import papers
from search.papers.row import Row


def row(ours):
    return Row(table="Table 1", row="net", quantity="deployed params", paper="8.30", unit="M", ours=ours)


@pytest.mark.parametrize(("ours", "code"), [(8_309_384, 0), (8_320_000, 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_published_number_that_is_not_met_fails(ours, code, as_json, capsys):
    assert render.paper([row(ours)], as_json=as_json) == code
    said = capsys.readouterr().out
    if as_json:
        (found,) = json.loads(said)
        assert (found["paper"], found["ours"], found["verdict"]) == ("8.30", ours, "DIFFERS" if code else "SAME")
    else:
        assert f"{ours:,}" in said
        assert f"{1 - code} of 1 are SAME" in said


def test_what_cannot_be_recomputed_is_listed_with_the_reason(capsys):
    assert render.paper(papers.rows("pas"), as_json=False) == 0
    said = capsys.readouterr().out
    assert "PaS-A, PaS-B, PaS-C, PaS-light-A, PaS-light-B, PaS-light-C: the widths that were searched are not published" in said
    assert "11,815,485,440" in said


def test_the_end_of_adaptive_coverage_says_whether_it_is_as_good_as_asked():
    proof = Proof(held_out=5, mean_error=0.06, largest_error=0.2, inside=1.0)
    covered = Covered(measured=76, blocks=132, expected_error=0.087, proof=proof, done=True, enough=True)
    said = "76 of 132 blocks measured; interpolation is off by 8.70% as expected, 6.00% at 5 held-out ones (largest 20.0%)"
    assert render._covered(covered) == f"{said}: done"
    assert render._covered(replace(covered, enough=False)).startswith(f"{said}: more than was asked for")
    assert render._covered(replace(covered, done=False, enough=False)) == said
